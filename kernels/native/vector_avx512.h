/* Vectors of 16 floats with AVX-512 (F, BW, VL, DQ); with PAIR 2 also the bf16 dot product of AVX512_BF16. */

#define VEC __m512
#define VINT int_vector_16
typedef int32_t int_vector_16 __attribute__((vector_size(64)));

#define MAX_COLUMNS 5
#define ROWS_AT_2_COLUMNS 8

INLINE VEC FN(zero)(void) { return _mm512_setzero_ps(); }
INLINE VEC FN(all)(float value) { return _mm512_set1_ps(value); }
INLINE VEC FN(load)(const float *from) { return _mm512_loadu_ps(from); }
INLINE void FN(store)(float *to, VEC value) { _mm512_storeu_ps(to, value); }
INLINE VEC FN(fma)(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }
INLINE VEC FN(maximum)(VEC a, VEC b) { return _mm512_max_ps(a, b); }
INLINE int FN(any_greater)(VEC a, VEC b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
INLINE float FN(sum)(VEC a) { return _mm512_reduce_add_ps(a); }

/* t - floor(t), and value * 2^floor(t): exact for every t, -inf (0, and 0 times value) included. */
INLINE VEC FN(fraction)(VEC t) { return _mm512_reduce_ps(t, 0x09); }
INLINE VEC FN(times_power)(VEC value, VEC t) { return _mm512_scalef_ps(value, t); }

INLINE __mmask16 FN(first_of_16)(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

/* The first `count` (1 or more) elements at `from`, zeros after them. */
INLINE VEC FN(load_elements)(const char *from, int64_t dtype, int64_t count) {
    __mmask16 mask = FN(first_of_16)(count);
    if (dtype == ELEMENT_F32) return _mm512_maskz_loadu_ps(mask, from);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#if PAIR == 2
INLINE __m256i FN(to_bf16)(VEC value) { return (__m256i)_mm512_cvtneps_pbh(value); }
#else
/* Round to nearest even; a NaN stays one. */
INLINE __m256i FN(to_bf16)(VEC value) {
    __m512i bits = _mm512_castps_si512(value), top = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, top, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
}
#endif

INLINE void FN(store_elements)(char *to, int64_t dtype, VEC value, int64_t count) {
    __mmask16 mask = FN(first_of_16)(count);
    if (dtype == ELEMENT_F32) _mm512_mask_storeu_ps(to, mask, value);
    else _mm256_mask_storeu_epi16(to, mask, FN(to_bf16)(value));
}

/* Rows become columns: three rounds that pair rows 1, 2 and then 4 and 8 apart. */
INLINE void FN(transpose)(VEC row[16]) {
    VEC four[16];
    UNROLL(4) for (int i = 0; i < 16; i += 4) {
        VEC low01 = _mm512_unpacklo_ps(row[i], row[i + 1]), high01 = _mm512_unpackhi_ps(row[i], row[i + 1]);
        VEC low23 = _mm512_unpacklo_ps(row[i + 2], row[i + 3]), high23 = _mm512_unpackhi_ps(row[i + 2], row[i + 3]);
        four[i] = _mm512_shuffle_ps(low01, low23, 0x44);
        four[i + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
        four[i + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
        four[i + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
    }
    /* four[4 g + c], 128-bit lane L: column 4 L + c of rows 4 g .. 4 g + 3. */
    UNROLL(4) for (int c = 0; c < 4; c++) {
        VEC even_low = _mm512_shuffle_f32x4(four[c], four[4 + c], 0x88);
        VEC odd_low = _mm512_shuffle_f32x4(four[c], four[4 + c], 0xdd);
        VEC even_high = _mm512_shuffle_f32x4(four[8 + c], four[12 + c], 0x88);
        VEC odd_high = _mm512_shuffle_f32x4(four[8 + c], four[12 + c], 0xdd);
        row[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        row[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        row[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        row[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}

#if PAIR == 2

/* A word holds two bf16 that meet in one step of a product: two channels of a row, or one channel of two rows. */
typedef uint32_t FN(word);

INLINE VEC FN(broadcast)(const FN(word) *from) { return _mm512_castsi512_ps(_mm512_set1_epi32((int)*from)); }

INLINE VEC FN(multiply_add)(VEC a, VEC b, VEC sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* Words of one row: channels 2 i and 2 i + 1. `left` is what the row still holds. */
INLINE VEC FN(load_words)(const char *from, int64_t dtype, int64_t left) {
    __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    (void)dtype;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from));
}

/* Words of two rows: channel i of each. `second` is NULL where the rows end. */
INLINE VEC FN(load_row_pair)(const char *first, const char *second, int64_t dtype, int64_t left) {
    __mmask16 mask = FN(first_of_16)(left);
    __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first));
    (void)dtype;
    if (second) {
        __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second));
        words = _mm512_or_si512(words, _mm512_slli_epi32(high, 16));
    }
    return _mm512_castsi512_ps(words);
}

/* Two rows of a tile with queries in the lanes, as words that pair the rows. `apart` is unused. */
INLINE void FN(store_row_pair)(FN(word) *to, int64_t apart, VEC first, VEC second) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    (void)apart;
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(interleave, both));
}

/* One row of a tile, as words that pair its queries. */
INLINE void FN(store_row)(FN(word) *to, VEC row) { _mm256_storeu_si256((__m256i *)to, FN(to_bf16)(row)); }

#else
#include "vector_single.h"
#endif
