/* Block-sparse and dense attention on a CPU, forward and backward.
 *
 * Plain C with a C ABI; needs a compiler with GNU vector extensions (gcc 10, clang 12 or newer), nothing else. The
 * passes are written once (forward.h, backward.h) and compiled for each instruction set; which one runs is chosen at
 * run time, by the caller, among those that kernels_level() allows.
 */
#include "call.h"
#include "team.h"

#define PASSES "variant.h"
#include "each_level.h"

struct variant {
    unit_function forward, backward;
    size_t (*forward_bytes)(const struct attention_call *);
    size_t (*backward_bytes)(const struct attention_call *);
};

#define VARIANT(name) {forward_unit_##name, backward_unit_##name, forward_bytes_##name, backward_bytes_##name}

static const struct variant variants[NUM_LEVELS] = EACH_VARIANT;

/* The bf16 dot product multiplies bf16 words; every other product multiplies floats, and reads bf16 as floats. */
static const struct variant *variant_of(const struct attention_call *x) {
    int64_t level = x->level == LEVEL_AVX512_BF16 && x->dtype != ELEMENT_BF16 ? LEVEL_AVX512 : x->level;
    return level < 0 || level > best_level() ? NULL : &variants[level];
}

static int64_t run(const struct attention_call *x, unit_function units, size_t scratch_bytes) {
    int64_t count = x->batch * x->groups * x->parts;
    struct job job = {x, units, count, x->threads, x->team, scratch_bytes, 0, 0};
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
