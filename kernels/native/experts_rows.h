/* The passes over rows of channels of experts.c for one instruction set; see one_level.h.
 *
 * Step functions take `count`, how many elements of the row are left: the constant WIDTH in the main loops, fewer at
 * the end of a row.
 */

/* `vectors` vectors of a token's row, from channel c on: the sum of gate * y over its assignments. */
INLINE void FN(scatter_step)(const struct dispatch_call *x, const int64_t *list, const int64_t *end, int64_t c,
                             int vectors, int64_t count, int64_t dtype, char *out) {
    int64_t bytes = element_bytes(dtype);
    VEC sum[4] = {FN(zero)(), FN(zero)(), FN(zero)(), FN(zero)()};
    for (; list < end; list++) {
        const char *row = row_at(x, *list) + c * bytes;
        VEC gate = FN(all)(x->gate ? x->gate[*list] : 1.0f);
        UNROLL(4) for (int i = 0; i < vectors; i++)
            sum[i] = FN(fma)(FN(load_elements)(row + i * WIDTH * bytes, dtype, count), gate, sum[i]);
    }
    UNROLL(4) for (int i = 0; i < vectors; i++)
        FN(store_elements)(out + (c + i * WIDTH) * bytes, dtype, sum[i], count);
}

INLINE void FN(scatter_row)(const struct scatter *lists, int64_t token, int64_t dtype) {
    const struct dispatch_call *x = lists->call;
    const int64_t *list = lists->order + (token ? lists->ends[token - 1] : 0), *end = lists->order + lists->ends[token];
    char *out = out_at(x, token);
    int64_t c = 0;
    for (; c + 4 * WIDTH <= x->channels; c += 4 * WIDTH) FN(scatter_step)(x, list, end, c, 4, WIDTH, dtype, out);
    for (; c + WIDTH <= x->channels; c += WIDTH) FN(scatter_step)(x, list, end, c, 1, WIDTH, dtype, out);
    if (c < x->channels) FN(scatter_step)(x, list, end, c, 1, x->channels - c, dtype, out);
}

static TARGET void FN(scatter_unit)(const void *argument, int64_t unit, void *memory) {
    const struct scatter *lists = argument;
    const struct dispatch_call *x = lists->call;
    int64_t first = unit * UNIT_ROWS, last = smaller(first + UNIT_ROWS, x->tokens);
    (void)memory;
    for (int64_t t = first; t < last; t++) {
        if (x->dtype == ELEMENT_BF16) FN(scatter_row)(lists, t, ELEMENT_BF16);
        else FN(scatter_row)(lists, t, ELEMENT_F32);
    }
}

/* One vector of an assignment's row: dy = gate * d_out, and the inner product of y and d_out. */
INLINE VEC FN(scatter_backward_step)(const char *d_out, const char *y, char *dy, int64_t c, int64_t count,
                                     int64_t dtype, VEC gate, VEC sum) {
    int64_t at = c * element_bytes(dtype);
    VEC gradient = FN(load_elements)(d_out + at, dtype, count);
    FN(store_elements)(dy + at, dtype, gradient * gate, count);
    return FN(fma)(gradient, FN(load_elements)(y + at, dtype, count), sum);
}

INLINE void FN(scatter_backward_row)(const struct dispatch_call *x, int64_t a, int64_t dtype) {
    const char *d_out = row_at(x, x->index[a]), *y = element_at(x->y, a * x->y_stride, dtype);
    char *dy = out_at(x, a);
    VEC gate = FN(all)(x->gate[a]), sum[4] = {FN(zero)(), FN(zero)(), FN(zero)(), FN(zero)()};
    int64_t c = 0;
    for (; c + 4 * WIDTH <= x->channels; c += 4 * WIDTH)
        UNROLL(4) for (int i = 0; i < 4; i++)
            sum[i] = FN(scatter_backward_step)(d_out, y, dy, c + i * WIDTH, WIDTH, dtype, gate, sum[i]);
    for (; c + WIDTH <= x->channels; c += WIDTH)
        sum[0] = FN(scatter_backward_step)(d_out, y, dy, c, WIDTH, dtype, gate, sum[0]);
    if (c < x->channels)
        sum[0] = FN(scatter_backward_step)(d_out, y, dy, c, x->channels - c, dtype, gate, sum[0]);
    x->d_gate[a] = FN(sum)((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static TARGET void FN(scatter_backward_unit)(const void *call, int64_t unit, void *memory) {
    const struct dispatch_call *x = call;
    int64_t first = unit * UNIT_ROWS, last = smaller(first + UNIT_ROWS, x->assignments);
    (void)memory;
    for (int64_t a = first; a < last; a++) {
        if (x->dtype == ELEMENT_BF16) FN(scatter_backward_row)(x, a, ELEMENT_BF16);
        else FN(scatter_backward_row)(x, a, ELEMENT_F32);
    }
}
