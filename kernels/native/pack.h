/* Tensors into the words that products read, and results back into tensors.
 *
 * Channels are padded to a whole word only. What is no valid token is packed as zeros, so a NaN in padding goes
 * nowhere. A store may reach past a row's end into the next one, which is written after it (see carve).
 */

/* Rows as they are: [rows][words]. */
static TARGET void FN(pack_rows)(WORD *to, const char *from, int64_t stride, int64_t dtype, int64_t channels,
                                 int64_t rows) {
    int64_t words = (channels + PAIR - 1) / PAIR;
    for (int64_t i = 0; i < rows; i++, to += words) {
        const char *row = element_at(from, i * stride, dtype);
        for (int64_t w = 0; w < words; w += WIDTH)
            FN(store)((float *)(to + w),
                      FN(load_words)(element_at(row, w * PAIR, dtype), dtype, channels - w * PAIR));
    }
}

/* PAIR rows in one: [ceil(rows / PAIR)][width], width at least the number of channels. */
static TARGET void FN(pack_row_pairs)(WORD *to, int64_t width, const char *from, int64_t stride, int64_t dtype,
                                      int64_t channels, int64_t rows) {
    for (int64_t i = 0; i < rows; i += PAIR, to += width) {
        const char *first = element_at(from, i * stride, dtype);
        const char *second = i + 1 < rows ? element_at(first, stride, dtype) : NULL;
        for (int64_t d = 0; d < channels; d += WIDTH) {
            const char *beside = second ? element_at(second, d, dtype) : NULL;
            FN(store)((float *)(to + d),
                      FN(load_row_pair)(element_at(first, d, dtype), beside, dtype, channels - d));
        }
    }
}

/* The same for the `lanes` rows of a tile of queries, of which `rows` are there: the others are zeros. */
static TARGET void FN(pack_tile_pairs)(WORD *to, int64_t width, const char *from, int64_t stride, int64_t dtype,
                                       int64_t channels, int64_t rows, int64_t lanes) {
    int64_t filled = (rows + PAIR - 1) / PAIR;
    FN(pack_row_pairs)(to, width, from, stride, dtype, channels, rows);
    memset(to + filled * width, 0, (size_t)((lanes / PAIR - filled) * width) * sizeof(WORD));
}

/* Rows in the lanes: [words][lanes]; lanes from `rows` on are zeros. */
static TARGET void FN(pack_lanes)(WORD *to, int64_t lanes, const char *from, int64_t stride, int64_t dtype,
                                  int64_t channels, int64_t rows) {
    int64_t words = (channels + PAIR - 1) / PAIR;
    for (int64_t lane = 0; lane < lanes; lane += WIDTH) {
        for (int64_t w = 0; w < words; w += WIDTH) {
            VEC block[WIDTH];
            for (int64_t i = 0; i < WIDTH; i++) {
                const char *row = element_at(from, (lane + i) * stride + w * PAIR, dtype);
                block[i] = lane + i < rows ? FN(load_words)(row, dtype, channels - w * PAIR) : FN(zero)();
            }
            FN(transpose)(block);
            for (int64_t i = 0; i < smaller(WIDTH, words - w); i++)
                FN(store)((float *)(to + (w + i) * lanes + lane), block[i]);
        }
    }
}

/* The way back: `from` [channels][lanes], each lane times its factor, into dense rows of `channels` elements. Rows from
 * `valid` on are zeros. */
static TARGET void FN(store_lanes)(char *to, int64_t dtype, const float *from, int64_t lanes, int64_t channels,
                                   const struct query_tile *tile, const float *factor) {
    for (int64_t lane = 0; lane < tile->total; lane += WIDTH) {
        for (int64_t d = 0; d < channels; d += WIDTH) {
            VEC block[WIDTH];
            for (int64_t i = 0; i < WIDTH; i++) {
                block[i] = FN(zero)();
                if (lane < lanes && d + i < channels)
                    block[i] = FN(load)(from + (d + i) * lanes + lane) * FN(load)(factor + lane);
            }
            FN(transpose)(block);
            for (int64_t i = 0; i < smaller(WIDTH, tile->total - lane); i++) {
                VEC row = lane + i < tile->valid ? block[i] : FN(zero)();
                FN(store_elements)((char *)element_at(to, (lane + i) * channels + d, dtype), dtype, row, channels - d);
            }
        }
    }
}

/* Rows of `width` floats, times `factor`, into dense rows of `channels` elements. */
static TARGET void FN(store_rows)(char *to, int64_t dtype, const float *from, int64_t width, int64_t channels,
                                  int64_t rows, float factor) {
    VEC times = FN(all)(factor);
    for (int64_t i = 0; i < rows; i++, from += width)
        for (int64_t d = 0; d < channels; d += WIDTH)
            FN(store_elements)((char *)element_at(to, i * channels + d, dtype), dtype, FN(load)(from + d) * times,
                               channels - d);
}

/* The keys' rows of one key/value head: each valid stretch of a block, then zeros to the block's end. */
static TARGET void FN(pack_head)(const struct attention_call *x, enum packing packing, WORD *to, const char *from,
                                 int64_t stride, int64_t channels) {
    int64_t words = (channels + PAIR - 1) / PAIR, width = packing == AS_ROWS ? words : channels;
    int64_t rows_in_one = packing == AS_ROWS ? 1 : PAIR;
    for (int64_t block = 0; block < num_k_blocks(x); block++) {
        int64_t first = block * x->block_k, valid = larger(0, valid_keys(x, block));
        int64_t filled = (valid + rows_in_one - 1) / rows_in_one, all = x->block_k / rows_in_one;
        const char *rows = element_at(from, first * stride, x->dtype);
        WORD *packed = to + first / rows_in_one * width;
        if (packing == AS_ROWS) FN(pack_rows)(packed, rows, stride, x->dtype, channels, valid);
        else FN(pack_row_pairs)(packed, width, rows, stride, x->dtype, channels, valid);
        memset(packed + filled * width, 0, (size_t)((all - filled) * width) * sizeof(WORD));
    }
}
