/* Vectors of 8 floats with AVX2 and FMA. */

#define VEC __m256
#define VINT int_vector_8
typedef int32_t int_vector_8 __attribute__((vector_size(32)));

#define MAX_COLUMNS 2  /* 16 registers: 6 x 2 sums, 2 vectors, 1 broadcast */
#define ROWS_AT_2_COLUMNS 6

INLINE VEC FN(zero)(void) { return _mm256_setzero_ps(); }
INLINE VEC FN(all)(float value) { return _mm256_set1_ps(value); }
INLINE VEC FN(load)(const float *from) { return _mm256_loadu_ps(from); }
INLINE void FN(store)(float *to, VEC value) { _mm256_storeu_ps(to, value); }
INLINE VEC FN(fma)(VEC a, VEC b, VEC c) { return _mm256_fmadd_ps(a, b, c); }
INLINE VEC FN(maximum)(VEC a, VEC b) { return _mm256_max_ps(a, b); }
INLINE int FN(any_greater)(VEC a, VEC b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }

INLINE float FN(sum)(VEC a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* t - floor(t) for t of at least -126; below that any number between 0 and 1 will do, see times_power. */
INLINE VEC FN(fraction)(VEC t) {
    VEC bounded = _mm256_max_ps(_mm256_set1_ps(-126.0f), t);  /* a NaN in the second operand stays */
    return _mm256_sub_ps(bounded, _mm256_floor_ps(bounded));
}

/* value * 2^floor(t); 0 where t is below -126. */
INLINE VEC FN(times_power)(VEC value, VEC t) {
    VEC bounded = _mm256_floor_ps(_mm256_max_ps(_mm256_set1_ps(-126.0f), t));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(bounded), _mm256_set1_epi32(127)), 23);
    VEC product = _mm256_mul_ps(value, _mm256_castsi256_ps(power));
    return _mm256_andnot_ps(_mm256_cmp_ps(t, _mm256_set1_ps(-126.0f), _CMP_LT_OQ), product);
}

INLINE VEC FN(load_elements)(const char *from, int64_t dtype, int64_t count) {
    char whole[32] = {0};
    if (count < 8) {
        memcpy(whole, from, (size_t)(count * element_bytes(dtype)));
        from = whole;
    }
    if (dtype == ELEMENT_F32) return _mm256_loadu_ps((const float *)from);
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* Round to nearest even; a NaN stays one. */
INLINE __m128i FN(to_bf16)(VEC value) {
    __m256i bits = _mm256_castps_si256(value), top = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

INLINE void FN(store_elements)(char *to, int64_t dtype, VEC value, int64_t count) {
    char whole[32];
    if (dtype == ELEMENT_F32) _mm256_storeu_ps((float *)whole, value);
    else _mm_storeu_si128((__m128i *)whole, FN(to_bf16)(value));
    memcpy(to, whole, (size_t)(smaller(count, 8) * element_bytes(dtype)));
}

INLINE void FN(transpose)(VEC row[8]) {
    VEC four[8];
    UNROLL(2) for (int i = 0; i < 8; i += 4) {
        VEC low01 = _mm256_unpacklo_ps(row[i], row[i + 1]), high01 = _mm256_unpackhi_ps(row[i], row[i + 1]);
        VEC low23 = _mm256_unpacklo_ps(row[i + 2], row[i + 3]), high23 = _mm256_unpackhi_ps(row[i + 2], row[i + 3]);
        four[i] = _mm256_shuffle_ps(low01, low23, 0x44);
        four[i + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
        four[i + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
        four[i + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
    }
    UNROLL(4) for (int c = 0; c < 4; c++) {
        row[c] = _mm256_permute2f128_ps(four[c], four[4 + c], 0x20);
        row[4 + c] = _mm256_permute2f128_ps(four[c], four[4 + c], 0x31);
    }
}

#include "vector_single.h"
