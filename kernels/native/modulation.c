/* Norm without weights, then scale and shift, on a CPU: out = norm(x) * (1 + scale) + shift, forward and backward.
 *
 * Plain C with a C ABI and GNU vector extensions, as attention.c, whose vectors it shares. The passes are written once
 * (modulation_rows.h) and compiled for each instruction set; which one runs is chosen at run time, by the caller, among
 * those that modulation_level() allows. Arithmetic is fp32 whatever the elements are.
 *
 * Work comes in units of `chunk` tokens of one picture. What a unit computes depends neither on the number of threads
 * nor on the thread that takes it, and sums over tokens are added up chunk by chunk: the same input gives the same bits.
 */
#include <stdlib.h>

#include "call.h"

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(count) PRAGMA(unroll)
#else
#define UNROLL(count) PRAGMA(GCC unroll count)
#endif

/* Raised with struct modulation_call, so that a library built from other sources is not used. */
#define MODULATION_ABI 1

/* Channels of one unit of the last sum over chunks. */
#define SUM_CHANNELS 128

enum level { LEVEL_GENERIC, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512_BF16, NUM_LEVELS };

/* Every field is 8 bytes wide, so that the caller packs them without knowing about alignment (modulation_cpu.py writes
 * them in this order). B pictures, N tokens, C channels; strides are in elements, last dimensions are dense. */
struct modulation_call {
    const void *x, *d_out;     /* [B, N, C]; d_out is NULL in the forward pass */
    const void *shift, *scale; /* [B, C]; shift is NULL in the backward pass */
    void *out;                 /* [B, N, C] contiguous: the result, or the gradient of x */
    float *mean, *rstd;        /* [B, N]; written forward, read backward; mean is NULL for the RMS norm */
    float *partial;            /* [B, chunks, 2, padded C]: each chunk's sums for shift and scale; backward only */
    void *d_shift, *d_scale;   /* [B, C] contiguous; backward only */
    void *team;                /* GOMP_parallel, or NULL: the calling thread then does all the work */
    int64_t x_stride[2], d_out_stride[2], shift_stride, scale_stride; /* batch (, token) */
    int64_t batch, tokens, channels;
    int64_t chunk;             /* tokens a unit of work */
    int64_t threads;
    int64_t dtype, condition_dtype; /* enum element: of x, d_out, out; of shift, scale and their gradients */
    int64_t level;
    double eps;
};

_Static_assert(sizeof(struct modulation_call) == 26 * 8, "struct modulation_call is packed as 8-byte fields");

static inline int64_t num_chunks(const struct modulation_call *x) { return (x->tokens + x->chunk - 1) / x->chunk; }

/* Rows of floats that belong to channels are as long as this: whole vectors can then be read and written. */
static inline int64_t padded_channels(const struct modulation_call *x) { return round_up(x->channels, 16); }

#define FN(name) name##_generic
#define TARGET
#define PAIR 1
#define WIDTH 4
#define VECTORS "vector_generic.h"
#include "modulation_rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FN(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define PAIR 1
#define WIDTH 8
#define VECTORS "vector_avx2.h"
#include "modulation_rows.h"

#define FN(name) name##_avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define PAIR 1
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "modulation_rows.h"

#define FN(name) name##_avx512_bf16
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define PAIR 2
#define WIDTH 16
#define VECTORS "vector_avx512.h"
#include "modulation_rows.h"
#endif

typedef void (*modulation_unit)(const struct modulation_call *, int64_t unit, float *scratch);
typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);

struct variant {
    modulation_unit forward, backward, sum;
};

#define VARIANT(name) {forward_unit_##name, backward_unit_##name, sum_unit_##name}

static const struct variant variants[NUM_LEVELS] = {
    [LEVEL_GENERIC] = VARIANT(generic),
#if defined(__x86_64__)
    [LEVEL_AVX2] = VARIANT(avx2),
    [LEVEL_AVX512] = VARIANT(avx512),
    [LEVEL_AVX512_BF16] = VARIANT(avx512_bf16),
#endif
};

struct job {
    const struct modulation_call *call;
    modulation_unit run;
    int64_t units, next;
    int out_of_memory;
};

/* Units are taken from a counter, so any number of threads, one included, finishes all of them. */
static void take_units(void *argument) {
    struct job *job = argument;
    void *scratch = NULL;
    for (;;) {
        int64_t unit = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (unit >= job->units) break;
        if (!scratch && posix_memalign(&scratch, 64, (size_t)padded_channels(job->call) * 2 * sizeof(float))) {
            __atomic_store_n(&job->out_of_memory, 1, __ATOMIC_RELAXED);
            scratch = NULL;
            break;
        }
        job->run(job->call, unit, scratch);
    }
    free(scratch);
}

/* On torch's own threads, see team.h. 0, or -1 where memory ran out. */
static int64_t run(const struct modulation_call *x, modulation_unit units, int64_t count) {
    struct job job = {x, units, count, 0, 0};
    int64_t threads = smaller(x->threads, count);
    if (threads > 1 && x->team) ((parallel_function)x->team)(take_units, &job, (unsigned)threads, 0);
    else take_units(&job);
    return job.out_of_memory ? -1 : 0;
}

int64_t modulation_abi(void) { return MODULATION_ABI; }

/* The best instruction set of this machine; every lower one works as well. */
int64_t modulation_level(void) {
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

static const struct variant *variant_of(const struct modulation_call *x) {
    return x->level < 0 || x->level > modulation_level() ? NULL : &variants[x->level];
}

/* Both return 0; -1 where memory ran out; -2 where the machine does not have the instruction set asked for. */
int64_t modulation_forward(const struct modulation_call *x) {
    const struct variant *variant = variant_of(x);
    return variant ? run(x, variant->forward, x->batch * num_chunks(x)) : -2;
}

int64_t modulation_backward(const struct modulation_call *x) {
    const struct variant *variant = variant_of(x);
    if (!variant) return -2;
    int64_t failed = run(x, variant->backward, x->batch * num_chunks(x));
    if (failed) return failed;
    return run(x, variant->sum, x->batch * ((x->channels + SUM_CHANNELS - 1) / SUM_CHANNELS));
}
