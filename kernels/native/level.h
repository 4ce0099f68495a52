/* Instruction sets: every kernel is compiled for each, and the caller chooses among those that this machine has. */
#ifndef MEZZOTINT_LEVEL_H
#define MEZZOTINT_LEVEL_H

#include <stdint.h>

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(count) PRAGMA(unroll)
#else
#define UNROLL(count) PRAGMA(GCC unroll count)
#endif

_Static_assert(sizeof(void *) == 8, "structs of calls are packed by the caller as 8-byte fields");

enum level { LEVEL_GENERIC, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512_BF16, NUM_LEVELS };

/* The best instruction set of this machine; every lower one works as well. */
static inline int64_t best_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return LEVEL_AVX512_BF16;
    if (avx512) return LEVEL_AVX512;
    if (avx2) return LEVEL_AVX2;
#endif
    return LEVEL_GENERIC;
}

#endif
