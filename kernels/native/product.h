/* A product of any size, cut into register tiles.
 *
 * c [rows, vectors * WIDTH] (+)= sum over steps of a[row, step] * b[step, lane]. Words of a lie a_row and a_step apart,
 * so that either of its dimensions may be the dense one.
 */

#define ROWS 8
#define COLUMNS 1
#include "tile.h"
#define ROWS 4
#define COLUMNS 1
#include "tile.h"
#define ROWS 2
#define COLUMNS 1
#include "tile.h"
#define ROWS 1
#define COLUMNS 1
#include "tile.h"
#if ROWS_AT_2_COLUMNS != 4
#define ROWS ROWS_AT_2_COLUMNS
#define COLUMNS 2
#include "tile.h"
#endif
#define ROWS 4
#define COLUMNS 2
#include "tile.h"
#define ROWS 2
#define COLUMNS 2
#include "tile.h"
#define ROWS 1
#define COLUMNS 2
#include "tile.h"
#if MAX_COLUMNS >= 4
#define ROWS 8
#define COLUMNS 3
#include "tile.h"
#define ROWS 4
#define COLUMNS 3
#include "tile.h"
#define ROWS 2
#define COLUMNS 3
#include "tile.h"
#define ROWS 1
#define COLUMNS 3
#include "tile.h"
#define ROWS 6
#define COLUMNS 4
#include "tile.h"
#define ROWS 4
#define COLUMNS 4
#include "tile.h"
#define ROWS 2
#define COLUMNS 4
#include "tile.h"
#define ROWS 1
#define COLUMNS 4
#include "tile.h"
#endif
#if MAX_COLUMNS >= 5
#define ROWS 4
#define COLUMNS 5
#include "tile.h"
#define ROWS 2
#define COLUMNS 5
#include "tile.h"
#define ROWS 1
#define COLUMNS 5
#include "tile.h"
#endif

typedef void (*FN(tile_function))(float *, int64_t, const WORD *, int64_t, int64_t, const WORD *, int64_t, int64_t,
                                  int);

/* By columns and rows; the tallest of each column count keeps the registers full. */
static const FN(tile_function) FN(tiles)[MAX_COLUMNS + 1][9] = {
    [1] = {[8] = TILE(8, 1), [4] = TILE(4, 1), [2] = TILE(2, 1), [1] = TILE(1, 1)},
#if ROWS_AT_2_COLUMNS != 4
    [2] = {[ROWS_AT_2_COLUMNS] = TILE(ROWS_AT_2_COLUMNS, 2), [4] = TILE(4, 2), [2] = TILE(2, 2), [1] = TILE(1, 2)},
#else
    [2] = {[4] = TILE(4, 2), [2] = TILE(2, 2), [1] = TILE(1, 2)},
#endif
#if MAX_COLUMNS >= 4
    [3] = {[8] = TILE(8, 3), [4] = TILE(4, 3), [2] = TILE(2, 3), [1] = TILE(1, 3)},
    [4] = {[6] = TILE(6, 4), [4] = TILE(4, 4), [2] = TILE(2, 4), [1] = TILE(1, 4)},
#endif
#if MAX_COLUMNS >= 5
    [5] = {[4] = TILE(4, 5), [2] = TILE(2, 5), [1] = TILE(1, 5)},
#endif
};

/* Rows of the next tile. 8 rows left are two tiles of 4, not one of 6 and one of 2: short tiles wait for sums. */
static inline int64_t FN(tile_rows)(int64_t left, int64_t columns) {
    static const int8_t tallest_at[6] = {0, 8, ROWS_AT_2_COLUMNS, 8, 6, 4};
    int64_t tallest = tallest_at[columns];
    if (left >= tallest && !(tallest == 6 && left == 8)) return tallest;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static TARGET void FN(product)(float *c, int64_t c_row, const WORD *a, int64_t a_row, int64_t a_step, const WORD *b,
                               int64_t b_step, int64_t rows, int64_t vectors, int64_t steps, int accumulate) {
    while (vectors > 0) {
        int64_t groups = (vectors + MAX_COLUMNS - 1) / MAX_COLUMNS, columns = (vectors + groups - 1) / groups;
        for (int64_t done = 0, height; done < rows; done += height) {
            height = FN(tile_rows)(rows - done, columns);
            FN(tiles)[columns][height](c + done * c_row, c_row, a + done * a_row, a_row, a_step, b, b_step, steps,
                                       accumulate);
        }
        vectors -= columns;
        c += columns * WIDTH;
        b += columns * WIDTH;
    }
}
