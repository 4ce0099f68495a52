/* Both passes for one instruction set: attention.c defines FN, TARGET, PAIR, WIDTH and VECTORS, and includes this. */

#define INLINE static inline __attribute__((always_inline)) TARGET
#define WORD FN(word)
#define TILE_OF(rows, columns) FN(tile_##rows##_##columns)
#define TILE(rows, columns) TILE_OF(rows, columns)

#include VECTORS
#include "vector_math.h"
#include "product.h"
#include "pack.h"
#include "masked.h"
#include "forward.h"
#include "backward.h"

static size_t FN(forward_bytes)(const struct attention_call *x) {
    struct FN(forward_scratch) scratch;
    return FN(forward_carve)(x, NULL, &scratch);
}

static size_t FN(backward_bytes)(const struct attention_call *x) {
    struct FN(backward_scratch) scratch;
    return FN(backward_carve)(x, NULL, &scratch);
}

#undef INLINE
#undef WORD
#undef TILE_OF
#undef TILE
#undef VEC
#undef VINT
#undef MAX_COLUMNS
#undef ROWS_AT_2_COLUMNS
#undef SCORE_UNIT
#undef FORWARD_KEYS
#undef BACKWARD_KEYS
#undef FN
#undef TARGET
#undef PAIR
#undef WIDTH
#undef VECTORS
