/* Scores of partly masked blocks. Whole blocks never come here. */

/* -inf where a query's bit of a key is not set: `s` is [run.rows][lanes]. */
static TARGET void FN(mask_run)(const struct attention_call *x, float *s, struct key_run run, int64_t lanes) {
    int64_t words = mask_words(x);
    const VINT minus_infinity = (VINT)FN(all)(-INFINITY);
    for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
        for (int64_t i = 0; i < run.keys;) {
            int64_t key = run.offset + i, end = smaller(run.keys, (key / 32 + 1) * 32 - run.offset);
            int32_t word[WIDTH];
            VINT bits;
            for (int64_t j = 0; j < WIDTH; j++) word[j] = run.mask[(lane + j) * words + key / 32];
            memcpy(&bits, word, sizeof bits);
            for (bits >>= (int)(key % 32); i < end; i++, bits >>= 1) {
                VINT out = (bits & 1) - 1;  /* -1 where the bit is not set */
                VINT kept = (VINT)FN(load)(s + i * lanes + lane) & ~out;
                FN(store)(s + i * lanes + lane, (VEC)(kept | (minus_infinity & out)));
            }
        }
    }
}

/* Scale and bias of one step's rows, applied before the masks, so that a scale of 0 or below does not turn -inf into
 * something else. The pass then goes on with a scale of 1 and with the biases, which become 0. */
static TARGET void FN(mask_scores)(const struct attention_call *x, float *s, float *bias, float scale,
                                   const struct key_run *runs, int64_t num_runs, int64_t lanes) {
    VEC times = FN(all)(scale);
    for (; num_runs > 0; num_runs--, runs++) {
        for (int64_t i = 0; i < runs->rows; i++)
            for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
                float *score = s + i * lanes + lane;
                FN(store)(score, FN(fma)(FN(load)(score), times, FN(all)(bias[i])));
            }
        if (runs->mask) FN(mask_run)(x, s, *runs, lanes);
        memset(bias, 0, (size_t)runs->rows * sizeof(float));
        s += runs->rows * lanes;
        bias += runs->rows;
    }
}
