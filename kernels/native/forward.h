/* The forward pass of one tile of queries, with an online softmax.
 *
 * Queries lie in the lanes of vectors: scores are S^T [keys][lanes] = K Q^T, and the output is collected as
 * O^T [channels][lanes] = V^T P^T. So the maximum, the sum and the rescaling of a softmax never cross lanes, head dims
 * are rows of register tiles (72 = 12 * 6: nothing is padded), K is read as it lies, and V only has its rows paired.
 */

#define FORWARD_KEYS 128  /* keys of one step of the online softmax: S^T is 32 KB, and stays in the first caches */

struct FN(forward_scratch) {
    WORD *k, *v;          /* one head: [M][D words], [M / PAIR][V] */
    WORD *q;              /* [D words][lanes] */
    WORD *p;              /* [keys / PAIR][lanes] */
    float *s, *o;         /* [keys][lanes], [V][lanes] */
    float *most, *total;  /* [lanes]: running maximum, in the unit of scores, and sum */
    float *factor, *bias; /* [lanes], [keys] */
};

static size_t FN(forward_carve)(const struct attention_call *x, void *base, struct FN(forward_scratch) *s) {
    struct arena arena = {(uintptr_t)base};
    int64_t words = (x->head_dim + PAIR - 1) / PAIR;
    s->k = carve(&arena, padded_keys(x) * words);
    s->v = carve(&arena, padded_keys(x) / PAIR * x->value_dim);
    s->q = carve(&arena, words * LANES);
    s->p = carve(&arena, FORWARD_KEYS / PAIR * LANES);
    s->s = carve(&arena, FORWARD_KEYS * LANES);
    s->o = carve(&arena, x->value_dim * LANES);
    s->most = carve(&arena, LANES);
    s->total = carve(&arena, LANES);
    s->factor = carve(&arena, LANES);
    s->bias = carve(&arena, FORWARD_KEYS);
    return (size_t)(arena.at - (uintptr_t)base);
}

/* S^T of the next keys of the walk; returns its rows, 0 at the end, and the runs of keys they belong to. *scale is what
 * S^T is still to be multiplied by, in the unit of scores. */
static TARGET int64_t FN(next_scores)(const struct attention_call *x, struct FN(forward_scratch) *s,
                                      const struct query_tile *tile, int64_t lanes, struct key_walk *walk,
                                      struct key_run *runs, int64_t *num_runs, float *scale) {
    int64_t words = (x->head_dim + PAIR - 1) / PAIR, rows = 0;
    int masked = 0;
    *num_runs = 0;
    *scale = (float)(x->scale * SCORE_UNIT);
    while (rows < FORWARD_KEYS) {
        struct key_run run = next_run(x, walk, FORWARD_KEYS - rows);
        if (!run.rows) break;
        fill_bias(x, tile, run, SCORE_UNIT, s->bias + rows);
        FN(product)(s->s + rows * lanes, lanes, s->k + run.first * words, words, 1, s->q, lanes, run.rows,
                    lanes / WIDTH, words, 0);
        runs[(*num_runs)++] = run;
        rows += run.rows;
        masked |= run.mask != NULL;
    }
    if (masked) {
        FN(mask_scores)(x, s->s, s->bias, *scale, runs, *num_runs, lanes);
        *scale = 1.0f;
    }
    return rows;
}

/* Brings a vector of lanes to a higher maximum: what was summed so far shrinks by exp(old - shift). */
static TARGET void FN(rescale)(struct FN(forward_scratch) *s, int64_t lane, int64_t lanes, int64_t channels,
                               VEC factor) {
    FN(store)(s->total + lane, FN(load)(s->total + lane) * factor);
    for (int64_t d = 0; d < channels; d++) {
        float *o = s->o + d * lanes + lane;
        FN(store)(o, FN(load)(o) * factor);
    }
}

/* P of `rows` (even) rows of S^T, and the new maximum and sum; O is rescaled where there is one. S^T is left scaled and
 * with its biases. */
static TARGET void FN(softmax)(struct FN(forward_scratch) *s, int64_t rows, int64_t lanes, int64_t channels,
                               float scale) {
    VEC times = FN(all)(scale);
    for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
        float *score = s->s + lane;
        VEC before = FN(load)(s->most + lane), most = before, other = before;
        for (int64_t i = 0; i < rows; i += 2, score += 2 * lanes) {
            VEC first = FN(fma)(FN(load)(score), times, FN(all)(s->bias[i]));
            VEC second = FN(fma)(FN(load)(score + lanes), times, FN(all)(s->bias[i + 1]));
            FN(store)(score, first);
            FN(store)(score + lanes, second);
            most = FN(maximum)(most, first);
            other = FN(maximum)(other, second);
        }
        most = FN(maximum)(most, other);
        VEC shift = FN(without_infinity)(most);
        if (FN(any_greater)(most, before)) FN(rescale)(s, lane, lanes, channels, FN(power)(before - shift));
        VEC total = FN(load)(s->total + lane), rest = FN(zero)();
        WORD *p = s->p + lane;
        score = s->s + lane;
        for (int64_t i = 0; i < rows; i += 2, score += 2 * lanes, p += 2 / PAIR * lanes) {
            VEC first = FN(power)(FN(load)(score) - shift), second = FN(power)(FN(load)(score + lanes) - shift);
            total += first;
            rest += second;
            FN(store_row_pair)(p, lanes, first, second);
        }
        FN(store)(s->most + lane, most);
        FN(store)(s->total + lane, total + rest);
    }
}

/* Divides by the sums, and writes out and lse. A query without a key has the sum 0: out 0, lse -inf. */
static TARGET void FN(finish_forward)(const struct attention_call *x, struct FN(forward_scratch) *s,
                                      const struct query_tile *tile, int64_t lanes) {
    int64_t row = (tile->batch * x->heads + tile->head) * x->num_q + tile->first;
    for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
        VEC total = FN(load)(s->total + lane);
        FN(store)(s->factor + lane, FN(where_nonzero)(total, FN(all)(1.0f) / total));
        FN(store)(s->total + lane, FN(log2)(total));
    }
    for (int64_t i = 0; i < tile->total; i++) {
        int present = i < tile->valid && s->factor[i] != 0.0f;
        x->lse[row + i] = present ? (float)(s->most[i] / SCORE_UNIT + s->total[i] * LN2) : -INFINITY;
    }
    FN(store_lanes)((char *)element_at(x->out, row * x->value_dim, x->dtype), x->dtype, s->o, lanes, x->value_dim,
                    tile, s->factor);
}

static TARGET void FN(forward_tile)(const struct attention_call *x, struct FN(forward_scratch) *s,
                                    const struct query_tile *tile) {
    int64_t lanes = round_up(tile->valid, WIDTH), num_runs, channels = x->value_dim, rows;
    struct key_walk walk = keys_of(x, tile);
    struct key_run runs[FORWARD_KEYS / 2];
    int filled = 0;
    float scale;
    const char *q = element_at(
        x->q, tile->batch * x->q_stride[0] + tile->head * x->q_stride[1] + tile->first * x->q_stride[2], x->dtype);
    FN(pack_lanes)(s->q, lanes, q, x->q_stride[2], x->dtype, x->head_dim, tile->valid);
    for (int64_t i = 0; i < lanes; i++) s->most[i] = -INFINITY, s->total[i] = 0.0f;
    while (lanes && (rows = FN(next_scores)(x, s, tile, lanes, &walk, runs, &num_runs, &scale))) {
        FN(softmax)(s, rows, lanes, filled ? channels : 0, scale);
        const WORD *p = s->p;
        for (int64_t i = 0; i < num_runs; i++, filled = 1) {
            FN(product)(s->o, lanes, s->v + runs[i].first / PAIR * channels, 1, channels, p, lanes, channels,
                        lanes / WIDTH, runs[i].rows / PAIR, filled);
            p += runs[i].rows / PAIR * lanes;
        }
    }
    if (!filled) memset(s->o, 0, (size_t)(channels * lanes) * sizeof(float));
    FN(finish_forward)(x, s, tile, lanes);
}

/* Unit of work: one part of the tiles of the query heads that share one key/value head, which is packed here, in cache
 * and once for all of them. */
static TARGET void FN(forward_unit)(const void *call, int64_t unit, void *memory) {
    const struct attention_call *x = call;
    int64_t part = unit % x->parts, head = unit / x->parts % x->groups, batch = unit / x->parts / x->groups;
    int64_t heads_of_group = x->heads / x->groups, tiles = tiles_per_head(x), all = heads_of_group * tiles;
    struct FN(forward_scratch) scratch;
    FN(forward_carve)(x, memory, &scratch);
    FN(pack_head)(x, AS_ROWS, scratch.k, element_at(x->k, batch * x->k_stride[0] + head * x->k_stride[1], x->dtype),
                  x->k_stride[2], x->head_dim);
    FN(pack_head)(x, AS_ROW_PAIRS, scratch.v,
                  element_at(x->v, batch * x->v_stride[0] + head * x->v_stride[1], x->dtype), x->v_stride[2],
                  x->value_dim);
    for (int64_t i = all * part / x->parts; i < all * (part + 1) / x->parts; i++) {
        struct query_tile tile = tile_at(x, batch, head * heads_of_group + i / tiles, i % tiles);
        if (tile.total > 0) FN(forward_tile)(x, &scratch, &tile);
    }
}
