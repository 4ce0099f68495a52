/* exp2 and log2 of vectors. */

/* 2^t for t <= 0 (and a little above). Minimax polynomials of 2^f on [0, 1]: relative error 7.5e-8 for fp32, and
 * 2.6e-6 where the result is rounded to bf16 (2e-3) anyway. */
INLINE VEC FN(exp2)(VEC t) {
    VEC f = FN(fraction)(t);
#if PAIR == 2
    VEC power = FN(fma)(f, FN(all)(1.353416778e-02f), FN(all)(5.201146007e-02f));
    power = FN(fma)(f, power, FN(all)(2.414427549e-01f));
    power = FN(fma)(f, power, FN(all)(6.930038333e-01f));
    power = FN(fma)(f, power, FN(all)(1.000002623e+00f));
#else
    VEC power = FN(fma)(f, FN(all)(1.877576113e-03f), FN(all)(8.989341557e-03f));
    power = FN(fma)(f, power, FN(all)(5.582631752e-02f));
    power = FN(fma)(f, power, FN(all)(2.401536107e-01f));
    power = FN(fma)(f, power, FN(all)(6.931530833e-01f));
    power = FN(fma)(f, power, FN(all)(9.999999404e-01f));
#endif
    return FN(times_power)(power, t);
}

/* exp of a score less the maximum or lse of its row. A pass that rounds P to bf16 anyway has its scores in units of
 * log2, and saves a multiplication. In fp32 they are natural, as lse is stored: a lse taken from one unit to the other
 * and back is not what it was, and where one key has nearly all of the weight, P would be off from 1 by the rounding of
 * its score (3e-5 at 1000), where the score and its lse are equal numbers otherwise. */
#if PAIR == 2
#define SCORE_UNIT LOG2E
INLINE VEC FN(power)(VEC t) { return FN(exp2)(t); }
#else
#define SCORE_UNIT 1.0
INLINE VEC FN(power)(VEC t) { return FN(exp2)(t * FN(all)((float)LOG2E)); }
#endif

/* log2(x) for normal x > 0 (a NaN stays one): x = m 2^e with m in [0.75, 1.5), and with s = (m - 1) / (m + 1)
 * log(m) = 2 (s + s^3 / 3 + s^5 / 5 + ...); |s| <= 0.2, so that what is cut off is below 2e-9. */
INLINE VEC FN(log2)(VEC x) {
    VINT bits = (VINT)x, e = (bits - 0x3f400000) >> 23;
    VEC m = (VEC)(bits - (e << 23)), one = FN(all)(1.0f);
    VEC s = (m - one) / (m + one), s2 = s * s;
    VEC series = FN(fma)(s2, FN(all)(2.0f / 9.0f * (float)LOG2E), FN(all)(2.0f / 7.0f * (float)LOG2E));
    series = FN(fma)(s2, series, FN(all)(2.0f / 5.0f * (float)LOG2E));
    series = FN(fma)(s2, series, FN(all)(2.0f / 3.0f * (float)LOG2E));
    series = FN(fma)(s2, series, FN(all)(2.0f * (float)LOG2E));
    return FN(fma)(s, series, __builtin_convertvector(e, VEC)) + (x - x);
}

/* value where keep is not 0 (or is NaN), 0 elsewhere. */
INLINE VEC FN(where_nonzero)(VEC keep, VEC value) {
    VINT is_zero = (VINT)(keep == FN(zero)());
    return (VEC)((VINT)value & ~is_zero);
}

/* -inf becomes 0, so that differences with it are no NaN; all else stays. */
INLINE VEC FN(without_infinity)(VEC value) {
    VINT is_infinite = (VINT)(value == FN(all)(-INFINITY));
    return (VEC)((VINT)value & ~is_infinite);
}
