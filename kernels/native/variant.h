/* Both passes of attention.c for one instruction set; see one_level.h. */

#define WORD FN(word)
#define TILE_OF(rows, columns) FN(tile_##rows##_##columns)
#define TILE(rows, columns) TILE_OF(rows, columns)

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

#undef WORD
#undef TILE_OF
#undef TILE
#undef SCORE_UNIT
#undef FORWARD_KEYS
#undef BACKWARD_KEYS
