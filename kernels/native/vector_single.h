/* Words of the fp32 product: one float each, so a pair of rows is just two rows. */

typedef float FN(word);

INLINE VEC FN(broadcast)(const FN(word) *from) { return FN(all)(*from); }

INLINE VEC FN(multiply_add)(VEC a, VEC b, VEC sum) { return FN(fma)(a, b, sum); }

INLINE VEC FN(load_words)(const char *from, int64_t dtype, int64_t left) {
    return FN(load_elements)(from, dtype, left);
}

INLINE VEC FN(load_row_pair)(const char *first, const char *second, int64_t dtype, int64_t left) {
    (void)second;
    return FN(load_elements)(first, dtype, left);
}

INLINE void FN(store_row_pair)(FN(word) *to, int64_t apart, VEC first, VEC second) {
    FN(store)(to, first);
    FN(store)(to + apart, second);
}

INLINE void FN(store_row)(FN(word) *to, VEC row) { FN(store)(to, row); }
