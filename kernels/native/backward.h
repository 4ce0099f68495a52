/* The backward pass of one tile of queries: P again from lse, then five products for each run of its keys.
 *
 *   S^T = K Q^T,  dP^T = V dO^T,  P = exp(S - lse),  dS = P (dP - delta)      [keys][lanes]
 *   dV += P^T dO,  dK += dS^T Q                                              [keys][channels]
 *   dQ^T += K^T dS^T                                                         [channels][lanes]
 *
 * One thread walks the tiles of a key/value head (or of a part of its queries) in order and adds dK and dV to sums of
 * its own, so each score is computed once, where a pass for dK and dV and another for dQ would compute it twice (five
 * products instead of seven), the walk needs no transposed lists, and no sum depends on the order of threads.
 */

#define BACKWARD_KEYS 64  /* keys of one step: S, dP and their bf16 copies stay in the first caches */

struct FN(backward_scratch) {
    WORD *k, *k_pairs, *v;             /* one head: [M][D words], [M / PAIR][D], [M][V words] */
    float *dk, *dv;                    /* [M][D lanes], [M][V lanes] */
    WORD *q, *g;                       /* Q and dO with queries in the lanes: [D words][lanes], [V words][lanes] */
    WORD *q_pairs, *g_pairs;           /* with channels in the lanes: [lanes / PAIR][D lanes], [..][V lanes] */
    float *s, *dp;                     /* [keys][lanes] */
    WORD *p, *ds, *ds_pairs;           /* [keys][lanes / PAIR] twice, [keys / PAIR][lanes] */
    float *dq;                         /* [D][lanes] */
    float *lse, *delta, *factor, *bias; /* [lanes] three times, lse in the unit of scores; [keys] */
};

static size_t FN(backward_carve)(const struct attention_call *x, void *base, struct FN(backward_scratch) *s) {
    struct arena arena = {(uintptr_t)base};
    int64_t keys = padded_keys(x), d_lanes = round_up(x->head_dim, WIDTH), v_lanes = round_up(x->value_dim, WIDTH);
    int64_t d_words = (x->head_dim + PAIR - 1) / PAIR, v_words = (x->value_dim + PAIR - 1) / PAIR;
    s->k = carve(&arena, keys * d_words);
    s->k_pairs = carve(&arena, keys / PAIR * x->head_dim);
    s->v = carve(&arena, keys * v_words);
    s->dk = carve(&arena, keys * d_lanes);
    s->dv = carve(&arena, keys * v_lanes);
    s->q = carve(&arena, d_words * LANES);
    s->g = carve(&arena, v_words * LANES);
    s->q_pairs = carve(&arena, LANES / PAIR * d_lanes);
    s->g_pairs = carve(&arena, LANES / PAIR * v_lanes);
    s->s = carve(&arena, BACKWARD_KEYS * LANES);
    s->dp = carve(&arena, BACKWARD_KEYS * LANES);
    s->p = carve(&arena, BACKWARD_KEYS * LANES / PAIR);
    s->ds = carve(&arena, BACKWARD_KEYS * LANES / PAIR);
    s->ds_pairs = PAIR == 1 ? s->ds : carve(&arena, BACKWARD_KEYS / PAIR * LANES);
    s->dq = carve(&arena, x->head_dim * LANES);
    s->lse = carve(&arena, LANES);
    s->delta = carve(&arena, LANES);
    s->factor = carve(&arena, LANES);
    s->bias = carve(&arena, BACKWARD_KEYS);
    return (size_t)(arena.at - (uintptr_t)base);
}

/* Sum over channels of two rows' products. */
static TARGET float FN(row_product)(const char *a, const char *b, int64_t dtype, int64_t channels) {
    VEC sum = FN(zero)();
    for (int64_t d = 0; d < channels; d += WIDTH)
        sum = FN(fma)(FN(load_elements)(element_at(a, d, dtype), dtype, channels - d),
                      FN(load_elements)(element_at(b, d, dtype), dtype, channels - d), sum);
    return FN(sum)(sum);
}

/* lse in the unit of scores and delta = rowsum(dO * O) - d_lse. Lanes of padding and of queries without a key get the lse
 * +inf, which makes their P and dS zero. */
static TARGET void FN(prepare_rows)(const struct attention_call *x, struct FN(backward_scratch) *s,
                                    const struct query_tile *tile, const char *g, int64_t lanes) {
    int64_t row = (tile->batch * x->heads + tile->head) * x->num_q + tile->first;
    for (int64_t i = 0; i < lanes; i++) {
        int present = i < tile->valid && x->lse[row + i] != -INFINITY;
        s->lse[i] = present ? (float)(x->lse[row + i] * SCORE_UNIT) : INFINITY;
        s->delta[i] = 0.0f;
        if (!present) continue;
        s->delta[i] = FN(row_product)(element_at(g, i * x->d_out_stride[2], x->dtype),
                                      element_at(x->out, (row + i) * x->value_dim, x->dtype), x->dtype, x->value_dim);
        if (x->d_lse) s->delta[i] -= x->d_lse[row + i];
    }
}

/* P and dS of `rows` (even) rows, in the forms that the three products read. d_bias, where wanted, gains dS summed over
 * the queries; it counts `keys` entries, rows or one less. */
static TARGET void FN(score_gradients)(struct FN(backward_scratch) *s, int64_t rows, int64_t keys, int64_t lanes,
                                       float scale, float *d_bias) {
    VEC times = FN(all)(scale);
    int64_t row_words = lanes / PAIR;
    for (int64_t i = 0; i < rows; i += 2) {
        VEC bias0 = FN(all)(s->bias[i]), bias1 = FN(all)(s->bias[i + 1]), sum0 = FN(zero)(), sum1 = FN(zero)();
        for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
            const float *score = s->s + i * lanes + lane, *dp = s->dp + i * lanes + lane;
            VEC lse = FN(load)(s->lse + lane), delta = FN(load)(s->delta + lane);
            VEC p0 = FN(power)(FN(fma)(FN(load)(score), times, bias0) - lse);
            VEC p1 = FN(power)(FN(fma)(FN(load)(score + lanes), times, bias1) - lse);
            VEC ds0 = p0 * (FN(load)(dp) - delta), ds1 = p1 * (FN(load)(dp + lanes) - delta);
            int64_t at = i * row_words + lane / PAIR;
            FN(store_row)(s->p + at, p0);
            FN(store_row)(s->p + at + row_words, p1);
            FN(store_row)(s->ds + at, ds0);
            FN(store_row)(s->ds + at + row_words, ds1);
            if (PAIR == 2) FN(store_row_pair)(s->ds_pairs + i / PAIR * lanes + lane, lanes, ds0, ds1);
            sum0 += ds0;
            sum1 += ds1;
        }
        if (!d_bias) continue;
        d_bias[i] += FN(sum)(sum0);
        if (i + 1 < keys) d_bias[i + 1] += FN(sum)(sum1);
    }
}

/* The five products of one run of keys. */
static TARGET void FN(backward_run)(const struct attention_call *x, struct FN(backward_scratch) *s, struct key_run run,
                                    int64_t lanes, float *d_bias, int filled) {
    int64_t d = x->head_dim, d_words = (d + PAIR - 1) / PAIR, v_words = (x->value_dim + PAIR - 1) / PAIR;
    int64_t d_lanes = round_up(d, WIDTH), v_lanes = round_up(x->value_dim, WIDTH);
    int64_t vectors = lanes / WIDTH, row_words = lanes / PAIR;
    float scale = (float)(x->scale * SCORE_UNIT);
    FN(product)(s->s, lanes, s->k + run.first * d_words, d_words, 1, s->q, lanes, run.rows, vectors, d_words, 0);
    FN(product)(s->dp, lanes, s->v + run.first * v_words, v_words, 1, s->g, lanes, run.rows, vectors, v_words, 0);
    if (run.mask) {
        FN(mask_scores)(x, s->s, s->bias, scale, &run, 1, lanes);
        scale = 1.0f;
    }
    FN(score_gradients)(s, run.rows, run.keys, lanes, scale, d_bias ? d_bias + run.first : NULL);
    FN(product)(s->dv + run.first * v_lanes, v_lanes, s->p, row_words, 1, s->g_pairs, v_lanes, run.rows,
                v_lanes / WIDTH, row_words, 1);
    FN(product)(s->dk + run.first * d_lanes, d_lanes, s->ds, row_words, 1, s->q_pairs, d_lanes, run.rows,
                d_lanes / WIDTH, row_words, 1);
    FN(product)(s->dq, lanes, s->k_pairs + run.first / PAIR * d, 1, d, s->ds_pairs, lanes, d, vectors,
                run.rows / PAIR, filled);
}

static TARGET void FN(backward_tile)(const struct attention_call *x, struct FN(backward_scratch) *s,
                                     const struct query_tile *tile, float *d_bias) {
    int64_t lanes = round_up(tile->valid, WIDTH), d = x->head_dim;
    int64_t d_lanes = round_up(d, WIDTH), v_lanes = round_up(x->value_dim, WIDTH);
    int64_t row = (tile->batch * x->heads + tile->head) * x->num_q + tile->first;
    const char *q = element_at(
        x->q, tile->batch * x->q_stride[0] + tile->head * x->q_stride[1] + tile->first * x->q_stride[2], x->dtype);
    const char *g = element_at(x->d_out, tile->batch * x->d_out_stride[0] + tile->head * x->d_out_stride[1]
                               + tile->first * x->d_out_stride[2], x->dtype);
    struct key_walk walk = keys_of(x, tile);
    int filled = 0;
    FN(prepare_rows)(x, s, tile, g, lanes);
    FN(pack_lanes)(s->q, lanes, q, x->q_stride[2], x->dtype, d, tile->valid);
    FN(pack_lanes)(s->g, lanes, g, x->d_out_stride[2], x->dtype, x->value_dim, tile->valid);
    FN(pack_tile_pairs)(s->q_pairs, d_lanes, q, x->q_stride[2], x->dtype, d, tile->valid, lanes);
    FN(pack_tile_pairs)(s->g_pairs, v_lanes, g, x->d_out_stride[2], x->dtype, x->value_dim, tile->valid, lanes);
    for (struct key_run run; lanes; filled = 1) {
        run = next_run(x, &walk, BACKWARD_KEYS);
        if (!run.rows) break;
        fill_bias(x, tile, run, SCORE_UNIT, s->bias);
        FN(backward_run)(x, s, run, lanes, d_bias, filled);
    }
    if (!filled) memset(s->dq, 0, (size_t)(d * lanes) * sizeof(float));
    for (int64_t i = 0; i < lanes; i++) s->factor[i] = (float)x->scale;
    FN(store_lanes)((char *)element_at(x->dq, row * d, x->dtype), x->dtype, s->dq, lanes, d, tile, s->factor);
}

/* Unit of work: as in the forward pass. With one part, dK and dV are final; with more, each part writes its own fp32
 * sums, and the caller adds them up in order. */
static TARGET void FN(backward_unit)(const void *call, int64_t unit, void *memory) {
    const struct attention_call *x = call;
    int64_t part = unit % x->parts, head = unit / x->parts % x->groups, batch = unit / x->parts / x->groups;
    int64_t heads_of_group = x->heads / x->groups, tiles = tiles_per_head(x), all = heads_of_group * tiles;
    int64_t d_lanes = round_up(x->head_dim, WIDTH), v_lanes = round_up(x->value_dim, WIDTH);
    int64_t dtype = x->parts > 1 ? ELEMENT_F32 : x->dtype;
    int64_t rows_before = ((part * x->batch + batch) * x->groups + head) * x->num_k;
    const char *k = element_at(x->k, batch * x->k_stride[0] + head * x->k_stride[1], x->dtype);
    const char *v = element_at(x->v, batch * x->v_stride[0] + head * x->v_stride[1], x->dtype);
    struct FN(backward_scratch) s;
    FN(backward_carve)(x, memory, &s);
    FN(pack_head)(x, AS_ROWS, s.k, k, x->k_stride[2], x->head_dim);
    FN(pack_head)(x, AS_ROW_PAIRS, s.k_pairs, k, x->k_stride[2], x->head_dim);
    FN(pack_head)(x, AS_ROWS, s.v, v, x->v_stride[2], x->value_dim);
    memset(s.dk, 0, (size_t)(padded_keys(x) * d_lanes) * sizeof(float));
    memset(s.dv, 0, (size_t)(padded_keys(x) * v_lanes) * sizeof(float));
    for (int64_t i = all * part / x->parts; i < all * (part + 1) / x->parts; i++) {
        struct query_tile tile = tile_at(x, batch, head * heads_of_group + i / tiles, i % tiles);
        int64_t bias_row = (part * x->batch + batch) * x->heads + tile.head;
        float *d_bias = x->d_bias ? x->d_bias + bias_row * x->num_k : NULL;
        if (tile.total > 0) FN(backward_tile)(x, &s, &tile, d_bias);
    }
    FN(store_rows)((char *)element_at(x->dk, rows_before * x->head_dim, dtype), dtype, s.dk, d_lanes, x->head_dim,
                   x->num_k, (float)x->scale);
    FN(store_rows)((char *)element_at(x->dv, rows_before * x->value_dim, dtype), dtype, s.dv, v_lanes, x->value_dim,
                   x->num_k, 1.0f);
}
