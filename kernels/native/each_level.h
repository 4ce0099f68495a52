/* The file PASSES, which the including source names, compiled for each instruction set. */
#include "level.h"

#define FN(name) name##_generic
#define TARGET
#define PAIR 1
#define WIDTH 4
#define VECTORS "vector_generic.h"
#include "one_level.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define PAIR 1
#define WIDTH 8
#define VECTORS "vector_avx2.h"
#include "one_level.h"

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define PAIR 1
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "one_level.h"

#define FN(name) name##_avx512_bf16
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define PAIR 2
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "one_level.h"
#endif

/* A table by enum level: VARIANT(suffix) is what the including source makes of one set's names. */
#if defined(__x86_64__)
#define EACH_VARIANT \
    {[LEVEL_GENERIC] = VARIANT(generic), [LEVEL_AVX2] = VARIANT(avx2), [LEVEL_AVX512] = VARIANT(avx512), \
     [LEVEL_AVX512_BF16] = VARIANT(avx512_bf16)}
#else
#define EACH_VARIANT {[LEVEL_GENERIC] = VARIANT(generic)}
#endif
