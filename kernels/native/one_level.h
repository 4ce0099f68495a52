/* The file PASSES for one instruction set: each_level.h defines FN, by which its names are told apart, TARGET, PAIR,
 * WIDTH and VECTORS, and includes this. PASSES finds the vectors and INLINE defined. */

#define INLINE static inline __attribute__((always_inline)) TARGET

#include VECTORS
#include PASSES

#undef INLINE
#undef VEC
#undef VINT
#undef MAX_COLUMNS
#undef ROWS_AT_2_COLUMNS
#undef FN
#undef TARGET
#undef PAIR
#undef WIDTH
#undef VECTORS
