/* The passes over rows of channels of modulation.c for one instruction set; see one_level.h.
 *
 * A row is read two or three times, and every time but the first it comes from the nearest cache. Step functions take
 * `count`, how many elements of the row are left: the constant WIDTH in the main loops, fewer at the end of a row.
 */

/* Tokens first .. last - 1 of a picture. */
struct FN(span) {
    int64_t batch, first, last;
};

INLINE struct FN(span) FN(span_of)(const struct modulation_call *x, int64_t unit) {
    int64_t first = unit % num_chunks(x) * x->chunk;
    struct FN(span) span = {unit / num_chunks(x), first, smaller(first + x->chunk, x->tokens)};
    return span;
}

/* `offset` + a row of shift or scale, as floats. */
INLINE void FN(widen)(float *to, const void *base, int64_t index, float offset, const struct modulation_call *x) {
    const char *from = element_at(base, index, x->condition_dtype);
    for (int64_t c = 0; c < x->channels; c += WIDTH) {
        const char *at = from + c * element_bytes(x->condition_dtype);
        FN(store)(to + c, FN(load_elements)(at, x->condition_dtype, x->channels - c) + FN(all)(offset));
    }
}

/* The first `count` lanes, zeros after them. */
INLINE VEC FN(keep_first)(VEC value, int64_t count) {
    float lane[WIDTH];
    FN(store)(lane, value);
    for (int64_t i = count; i < WIDTH; i++) lane[i] = 0.0f;
    return FN(load)(lane);
}

INLINE float FN(row_sum)(const char *row, int64_t dtype, int64_t channels) {
    VEC sum[4] = {FN(zero)(), FN(zero)(), FN(zero)(), FN(zero)()};
    int64_t bytes = element_bytes(dtype), c = 0;
    for (; c + 4 * WIDTH <= channels; c += 4 * WIDTH)
        UNROLL(4) for (int i = 0; i < 4; i++)
            sum[i] += FN(load_elements)(row + (c + i * WIDTH) * bytes, dtype, WIDTH);
    for (; c < channels; c += WIDTH) sum[0] += FN(load_elements)(row + c * bytes, dtype, channels - c);
    return FN(sum)((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Sum of (x - mean)^2: in a second pass, since E[x^2] - mean^2 cancels where the mean is large. */
INLINE float FN(row_squares)(const char *row, int64_t dtype, int64_t channels, float mean) {
    VEC sum[4] = {FN(zero)(), FN(zero)(), FN(zero)(), FN(zero)()}, centre = FN(all)(mean);
    int64_t bytes = element_bytes(dtype), c = 0;
    for (; c + 4 * WIDTH <= channels; c += 4 * WIDTH)
        UNROLL(4) for (int i = 0; i < 4; i++) {
            VEC value = FN(load_elements)(row + (c + i * WIDTH) * bytes, dtype, WIDTH) - centre;
            sum[i] = FN(fma)(value, value, sum[i]);
        }
    for (; c < channels; c += WIDTH) {
        VEC value = FN(load_elements)(row + c * bytes, dtype, channels - c) - centre;
        if (channels - c < WIDTH) value = FN(keep_first)(value, channels - c);
        sum[0] = FN(fma)(value, value, sum[0]);
    }
    return FN(sum)((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

INLINE void FN(forward_row)(const struct modulation_call *x, int64_t batch, int64_t token, const float *gain,
                            const float *shift, int64_t dtype) {
    int64_t bytes = element_bytes(dtype), at = batch * x->tokens + token, channels = x->channels, c = 0;
    const char *row = element_at(x->x, batch * x->x_stride[0] + token * x->x_stride[1], dtype);
    char *out = (char *)x->out + at * channels * bytes;
    float mean = x->mean ? FN(row_sum)(row, dtype, channels) / (float)channels : 0.0f;
    float variance = FN(row_squares)(row, dtype, channels, mean) / (float)channels;
    float rstd = 1.0f / sqrtf(variance + (float)x->eps);
    if (x->mean) x->mean[at] = mean;
    x->rstd[at] = rstd;
    VEC centre = FN(all)(mean), slope = FN(all)(rstd);
    for (; c + WIDTH <= channels; c += WIDTH) {
        VEC normed = (FN(load_elements)(row + c * bytes, dtype, WIDTH) - centre) * slope;
        FN(store_elements)(out + c * bytes, dtype, FN(fma)(normed, FN(load)(gain + c), FN(load)(shift + c)), WIDTH);
    }
    if (c < channels) {
        VEC normed = (FN(load_elements)(row + c * bytes, dtype, channels - c) - centre) * slope;
        VEC value = FN(fma)(normed, FN(load)(gain + c), FN(load)(shift + c));
        FN(store_elements)(out + c * bytes, dtype, value, channels - c);
    }
}

static TARGET void FN(forward_unit)(const void *call, int64_t unit, void *memory) {
    const struct modulation_call *x = call;
    struct FN(span) span = FN(span_of)(x, unit);
    float *gain = memory, *shift = gain + padded_channels(x);
    FN(widen)(gain, x->scale, span.batch * x->scale_stride, 1.0f, x);
    FN(widen)(shift, x->shift, span.batch * x->shift_stride, 0.0f, x);
    for (int64_t n = span.first; n < span.last; n++) {
        if (x->dtype == ELEMENT_BF16) FN(forward_row)(x, span.batch, n, gain, shift, ELEMENT_BF16);
        else FN(forward_row)(x, span.batch, n, gain, shift, ELEMENT_F32);
    }
}

/* One row of x and of the gradient behind it, with what the norm did to it. */
struct FN(pair) {
    const char *x, *d_out;
    VEC mean, rstd;
};

INLINE VEC FN(normed)(const struct FN(pair) *row, int64_t c, int64_t dtype, int64_t count) {
    return (FN(load_elements)(row->x + c * element_bytes(dtype), dtype, count) - row->mean) * row->rstd;
}

INLINE VEC FN(gradient)(const struct FN(pair) *row, int64_t c, int64_t dtype, int64_t count) {
    return FN(load_elements)(row->d_out + c * element_bytes(dtype), dtype, count);
}

/* Adds to the sums over tokens, d_shift and d_scale, and to the sums over channels of g = d_out * gain and g * normed.
 * Behind the end of a row d_out is read as zeros, so nothing is added there. */
INLINE void FN(sum_step)(const struct FN(pair) *row, int64_t c, int64_t dtype, int64_t count, const float *gain,
                         float *d_shift, float *d_scale, VEC *of_g, VEC *of_g_normed) {
    VEC normed = FN(normed)(row, c, dtype, count), d_out = FN(gradient)(row, c, dtype, count);
    VEC g = d_out * FN(load)(gain + c);
    *of_g += g;
    *of_g_normed = FN(fma)(g, normed, *of_g_normed);
    FN(store)(d_shift + c, FN(load)(d_shift + c) + d_out);
    FN(store)(d_scale + c, FN(fma)(d_out, normed, FN(load)(d_scale + c)));
}

/* dx = rstd * (g - mean(g) - normed * mean(g * normed)); without mean(g) for the RMS norm. */
INLINE void FN(dx_step)(const struct FN(pair) *row, int64_t c, int64_t dtype, int64_t count, const float *gain,
                        VEC mean_g, VEC minus_mean_g_normed, char *dx) {
    VEC normed = FN(normed)(row, c, dtype, count), g = FN(gradient)(row, c, dtype, count) * FN(load)(gain + c);
    VEC value = FN(fma)(normed, minus_mean_g_normed, g - mean_g) * row->rstd;
    FN(store_elements)(dx + c * element_bytes(dtype), dtype, value, count);
}

INLINE void FN(backward_row)(const struct modulation_call *x, int64_t batch, int64_t token, const float *gain,
                             float *d_shift, float *d_scale, int64_t dtype) {
    int64_t at = batch * x->tokens + token, channels = x->channels, c = 0;
    struct FN(pair) row = {
        element_at(x->x, batch * x->x_stride[0] + token * x->x_stride[1], dtype),
        element_at(x->d_out, batch * x->d_out_stride[0] + token * x->d_out_stride[1], dtype),
        FN(all)(x->mean ? x->mean[at] : 0.0f), FN(all)(x->rstd[at]),
    };
    VEC of_g[2] = {FN(zero)(), FN(zero)()}, of_g_normed[2] = {FN(zero)(), FN(zero)()};
    for (; c + 2 * WIDTH <= channels; c += 2 * WIDTH)
        UNROLL(2) for (int i = 0; i < 2; i++)
            FN(sum_step)(&row, c + i * WIDTH, dtype, WIDTH, gain, d_shift, d_scale, of_g + i, of_g_normed + i);
    for (; c < channels; c += WIDTH)
        FN(sum_step)(&row, c, dtype, channels - c, gain, d_shift, d_scale, of_g, of_g_normed);
    float mean_g = x->mean ? FN(sum)(of_g[0] + of_g[1]) / (float)channels : 0.0f;
    VEC all_mean_g = FN(all)(mean_g);
    VEC minus_mean_g_normed = FN(all)(-FN(sum)(of_g_normed[0] + of_g_normed[1]) / (float)channels);
    char *dx = (char *)x->out + at * channels * element_bytes(dtype);
    for (c = 0; c + WIDTH <= channels; c += WIDTH)
        FN(dx_step)(&row, c, dtype, WIDTH, gain, all_mean_g, minus_mean_g_normed, dx);
    if (c < channels) FN(dx_step)(&row, c, dtype, channels - c, gain, all_mean_g, minus_mean_g_normed, dx);
}

static TARGET void FN(backward_unit)(const void *call, int64_t unit, void *memory) {
    const struct modulation_call *x = call;
    float *gain = memory;
    struct FN(span) span = FN(span_of)(x, unit);
    float *d_shift = x->partial + unit * 2 * padded_channels(x), *d_scale = d_shift + padded_channels(x);
    memset(d_shift, 0, (size_t)padded_channels(x) * 2 * sizeof(float));
    FN(widen)(gain, x->scale, span.batch * x->scale_stride, 1.0f, x);
    for (int64_t n = span.first; n < span.last; n++) {
        if (x->dtype == ELEMENT_BF16) FN(backward_row)(x, span.batch, n, gain, d_shift, d_scale, ELEMENT_BF16);
        else FN(backward_row)(x, span.batch, n, gain, d_shift, d_scale, ELEMENT_F32);
    }
}

/* Chunks' sums of `SUM_CHANNELS` channels of a picture, added up in the order of the chunks. */
static TARGET void FN(sum_unit)(const void *call, int64_t unit, void *memory) {
    const struct modulation_call *x = call;
    int64_t blocks = (x->channels + SUM_CHANNELS - 1) / SUM_CHANNELS, padded = padded_channels(x);
    int64_t batch = unit / blocks, first = unit % blocks * SUM_CHANNELS;
    int64_t last = smaller(first + SUM_CHANNELS, x->channels), bytes = element_bytes(x->condition_dtype);
    const float *partial = x->partial + batch * num_chunks(x) * 2 * padded;
    (void)memory;
    for (int64_t c = first; c < last; c += WIDTH) {
        VEC d_shift = FN(zero)(), d_scale = FN(zero)();
        for (int64_t k = 0; k < num_chunks(x); k++) {
            d_shift += FN(load)(partial + k * 2 * padded + c);
            d_scale += FN(load)(partial + (k * 2 + 1) * padded + c);
        }
        int64_t at = (batch * x->channels + c) * bytes;
        FN(store_elements)((char *)x->d_shift + at, x->condition_dtype, d_shift, x->channels - c);
        FN(store_elements)((char *)x->d_scale + at, x->condition_dtype, d_scale, x->channels - c);
    }
}
