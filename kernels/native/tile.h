/* One register tile of a product, ROWS x COLUMNS vectors: c (+)= a b.
 *
 * a is read a word at a time and broadcast, b a vector at a time; every sum stays in a register over all steps, and
 * ROWS * COLUMNS of them are enough to hide the latency of the multiply-add.
 */
static TARGET void TILE(ROWS, COLUMNS)(float *c, int64_t c_row, const WORD *a, int64_t a_row, int64_t a_step,
                                       const WORD *b, int64_t b_step, int64_t steps, int accumulate) {
    VEC sum[ROWS][COLUMNS];
    const WORD *row[ROWS];
    UNROLL(8) for (int i = 0; i < ROWS; i++) {
        row[i] = a + i * a_row;
        UNROLL(8) for (int j = 0; j < COLUMNS; j++)
            sum[i][j] = accumulate ? FN(load)(c + i * c_row + j * WIDTH) : FN(zero)();
    }
    for (int64_t at = 0; steps > 0; steps--, at += a_step, b += b_step) {
        VEC vector[COLUMNS];
        UNROLL(8) for (int j = 0; j < COLUMNS; j++) vector[j] = FN(load)((const float *)(b + j * WIDTH));
        UNROLL(8) for (int i = 0; i < ROWS; i++) {
            VEC word = FN(broadcast)(row[i] + at);
            UNROLL(8) for (int j = 0; j < COLUMNS; j++) sum[i][j] = FN(multiply_add)(word, vector[j], sum[i][j]);
        }
    }
    UNROLL(8) for (int i = 0; i < ROWS; i++)
        UNROLL(8) for (int j = 0; j < COLUMNS; j++) FN(store)(c + i * c_row + j * WIDTH, sum[i][j]);
}

#undef ROWS
#undef COLUMNS
