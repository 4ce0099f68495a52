/* Block-sparse and dense attention on a CPU, forward and backward.
 *
 * Plain C with a C ABI; needs a compiler with GNU vector extensions (gcc 10, clang 12 or newer), nothing else. The
 * passes are written once (forward.h, backward.h) and compiled for each instruction set; which one runs is chosen at
 * run time, by the caller, among those that attention_level() allows.
 */
#include "call.h"
#include "team.h"

_Static_assert(sizeof(void *) == 8, "struct attention_call is packed by the caller as 8-byte fields");

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(count) PRAGMA(unroll)
#else
#define UNROLL(count) PRAGMA(GCC unroll count)
#endif

/* Raised with struct attention_call, so that a library built from other sources is not used. */
#define ATTENTION_ABI 1

enum level { LEVEL_GENERIC, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512_BF16, NUM_LEVELS };

#define FN(name) name##_generic
#define TARGET
#define PAIR 1
#define WIDTH 4
#define VECTORS "vector_generic.h"
#include "variant.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define PAIR 1
#define WIDTH 8
#define VECTORS "vector_avx2.h"
#include "variant.h"

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define PAIR 1
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "variant.h"

#define FN(name) name##_avx512_bf16
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define PAIR 2
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "variant.h"
#endif

struct variant {
    unit_function forward, backward;
    size_t (*forward_bytes)(const struct attention_call *);
    size_t (*backward_bytes)(const struct attention_call *);
};

#define VARIANT(name) {forward_unit_##name, backward_unit_##name, forward_bytes_##name, backward_bytes_##name}

static const struct variant variants[NUM_LEVELS] = {
    [LEVEL_GENERIC] = VARIANT(generic),
#if defined(__x86_64__)
    [LEVEL_AVX2] = VARIANT(avx2),
    [LEVEL_AVX512] = VARIANT(avx512),
    [LEVEL_AVX512_BF16] = VARIANT(avx512_bf16),
#endif
};

int64_t attention_abi(void) { return ATTENTION_ABI; }

/* The best instruction set of this machine; every lower one works as well. */
int64_t attention_level(void) {
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

/* The bf16 dot product multiplies bf16 words; every other product multiplies floats, and reads bf16 as floats. */
static const struct variant *variant_of(const struct attention_call *x) {
    int64_t level = x->level == LEVEL_AVX512_BF16 && x->dtype != ELEMENT_BF16 ? LEVEL_AVX512 : x->level;
    return level < 0 || level > attention_level() ? NULL : &variants[level];
}

static int64_t run(const struct attention_call *x, unit_function units, size_t scratch_bytes) {
    struct job job = {x, units, x->batch * x->groups * x->parts, 0, scratch_bytes, 0};
    return run_job(&job);
}

/* Both return 0; -1 where memory ran out; -2 where the machine does not have the instruction set asked for. */
int64_t attention_forward(const struct attention_call *x) {
    const struct variant *variant = variant_of(x);
    return variant ? run(x, variant->forward, variant->forward_bytes(x)) : -2;
}

int64_t attention_backward(const struct attention_call *x) {
    const struct variant *variant = variant_of(x);
    return variant ? run(x, variant->backward, variant->backward_bytes(x)) : -2;
}
