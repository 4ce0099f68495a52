/* Vectors of 4 floats in the compiler's own vector extension: NEON on ARM, SSE2 on x86, scalars elsewhere. */

#define VEC float_vector_4
#define VINT int_vector_4
typedef float float_vector_4 __attribute__((vector_size(16)));
typedef int32_t int_vector_4 __attribute__((vector_size(16)));

#if defined(__aarch64__)
#define MAX_COLUMNS 4  /* 32 registers */
#define ROWS_AT_2_COLUMNS 8
#else
#define MAX_COLUMNS 2  /* 16 registers or fewer, and no fused multiply-add */
#define ROWS_AT_2_COLUMNS 4
#endif

INLINE VEC FN(all)(float value) { return (VEC){value, value, value, value}; }
INLINE VEC FN(zero)(void) { return FN(all)(0.0f); }

INLINE VEC FN(load)(const float *from) {
    VEC value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void FN(store)(float *to, VEC value) { memcpy(to, &value, sizeof value); }
INLINE VEC FN(fma)(VEC a, VEC b, VEC c) { return a * b + c; }

INLINE VEC FN(maximum)(VEC a, VEC b) {
    VINT first = (VINT)(a > b);
    return (VEC)(((VINT)a & first) | ((VINT)b & ~first));
}

INLINE int FN(any_greater)(VEC a, VEC b) {
    VINT greater = (VINT)(a > b);
    return (greater[0] | greater[1] | greater[2] | greater[3]) != 0;
}

INLINE float FN(sum)(VEC a) { return (a[0] + a[1]) + (a[2] + a[3]); }

INLINE VEC FN(floor_bounded)(VEC t) {
    VEC bounded = FN(maximum)(FN(all)(-126.0f), t);  /* a NaN stays */
    VEC whole = __builtin_convertvector(__builtin_convertvector(bounded, VINT), VEC);
    return whole + __builtin_convertvector((VINT)(whole > bounded), VEC);  /* a comparison that holds is -1 */
}

/* t - floor(t) for t of at least -126; below that any number between 0 and 1 will do, see times_power. */
INLINE VEC FN(fraction)(VEC t) { return FN(maximum)(FN(all)(-126.0f), t) - FN(floor_bounded)(t); }

/* value * 2^floor(t); 0 where t is below -126. */
INLINE VEC FN(times_power)(VEC value, VEC t) {
    VINT power = (__builtin_convertvector(FN(floor_bounded)(t), VINT) + 127) << 23;
    VINT below = (VINT)(t < FN(all)(-126.0f));
    return (VEC)((VINT)(value * (VEC)power) & ~below);
}

INLINE float FN(from_bf16)(const char *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Round to nearest even; a NaN stays one. */
INLINE uint16_t FN(to_bf16)(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE VEC FN(load_elements)(const char *from, int64_t dtype, int64_t count) {
    VEC value = FN(zero)();
    if (dtype == ELEMENT_F32) {
        if (count >= 4) return FN(load)((const float *)from);
        memcpy(&value, from, (size_t)count * sizeof(float));
        return value;
    }
    for (int64_t i = 0; i < smaller(count, 4); i++) value[i] = FN(from_bf16)(from + 2 * i);
    return value;
}

INLINE void FN(store_elements)(char *to, int64_t dtype, VEC value, int64_t count) {
    if (dtype == ELEMENT_F32) {
        memcpy(to, &value, (size_t)smaller(count, 4) * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < smaller(count, 4); i++) {
        uint16_t half = FN(to_bf16)(value[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

INLINE void FN(transpose)(VEC row[4]) {
    VEC copy[4] = {row[0], row[1], row[2], row[3]};
    UNROLL(4) for (int i = 0; i < 4; i++) row[i] = (VEC){copy[0][i], copy[1][i], copy[2][i], copy[3][i]};
}

#include "vector_single.h"
