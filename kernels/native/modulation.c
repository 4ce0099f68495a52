/* Norm without weights, then scale and shift, on a CPU: out = norm(x) * (1 + scale) + shift, forward and backward.
 *
 * Plain C with a C ABI and GNU vector extensions, as attention.c, whose vectors it shares. The passes are written once
 * (modulation_rows.h) and compiled for each instruction set; which one runs is chosen at run time, by the caller, among
 * those that kernels_level() allows. Arithmetic is fp32 whatever the elements are.
 *
 * Work comes in units of `chunk` tokens of one picture. What a unit computes depends neither on the number of threads
 * nor on the thread that takes it, and sums over tokens are added up chunk by chunk: the same input gives the same bits.
 */
#include <math.h>

#include "memory.h"
#include "team.h"

/* Channels of one unit of the last sum over chunks. */
#define SUM_CHANNELS 128

/* Every field is 8 bytes wide, so that the caller packs them without knowing about alignment (modulation_cpu.py writes
 * them in this order). B pictures, N tokens, C channels; strides are in elements, last dimensions are dense. */
struct modulation_call {
    const void *x, *d_out;     /* [B, N, C]; d_out is NULL in the forward pass */
    const void *shift, *scale; /* [B, C]; shift is NULL in the backward pass */
    void *out;                 /* [B, N, C] contiguous: the result, or the gradient of x */
    float *mean, *rstd;        /* [B, N]; written forward, read backward; mean is NULL for the RMS norm */
    float *partial;            /* [B, chunks, 2, padded C]: each chunk's sums for shift and scale; backward only */
    void *d_shift, *d_scale;   /* [B, C] contiguous; backward only */
    void *team;                /* GOMP_parallel, or NULL: threads are then started for this call */
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

#define PASSES "modulation_rows.h"
#include "each_level.h"

struct variant {
    unit_function forward, backward, sum;
};

#define VARIANT(name) {forward_unit_##name, backward_unit_##name, sum_unit_##name}

static const struct variant variants[NUM_LEVELS] = EACH_VARIANT;

/* 0, or -1 where memory ran out. */
static int64_t run(const struct modulation_call *x, unit_function units, int64_t count) {
    size_t scratch_bytes = (size_t)padded_channels(x) * 2 * sizeof(float);
    struct job job = {x, units, count, x->threads, x->team, scratch_bytes, 0, 0};
    return run_job(&job);
}

static const struct variant *variant_of(const struct modulation_call *x) {
    return x->level < 0 || x->level > best_level() ? NULL : &variants[x->level];
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
