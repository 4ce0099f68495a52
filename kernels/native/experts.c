/* Expert dispatch on a CPU: rows of a mixture of experts come back to their tokens, forward and backward. Gathering them
 * and the products in between are torch's.
 *
 * Plain C with a C ABI and GNU vector extensions, as attention.c, whose vectors it shares. The passes are written once
 * (experts_rows.h) and compiled for each instruction set; which one runs is chosen at run time, by the caller, among
 * those that kernels_level() allows. Arithmetic is fp32 whatever the elements are.
 *
 * A scatter first turns the index round into a list of assignments for each token. One thread then writes a token's
 * row, once, after it has summed its assignments in their order: nothing is zeroed beforehand, no two threads meet in
 * a row, and the same input gives the same bits for any number of threads.
 */
#include "memory.h"
#include "team.h"

/* Rows that a thread takes at a time. */
#define UNIT_ROWS 16

/* Every field is 8 bytes wide, so that the caller packs them without knowing about alignment (expert_dispatch_cpu.py
 * writes them in this order). T tokens, A assignments, C channels; strides are in elements of the first dimension, the
 * last one is dense. */
struct dispatch_call {
    const void *rows;      /* forward: y [A, C]; backward: d_out [T, C] */
    const void *y;         /* [A, C]; backward only */
    const int64_t *index;  /* [A]: the token of each assignment */
    const float *gate;     /* [A]; NULL for ones, in the forward pass only */
    void *out;             /* contiguous; forward: [T, C]; backward: the gradient of y [A, C] */
    float *d_gate;         /* [A]; backward only */
    int64_t *refused;      /* [3]: where an index is no token, gets 1, the least index and the largest */
    void *team;            /* GOMP_parallel, or NULL: threads are then started for this call */
    int64_t rows_stride, y_stride;
    int64_t tokens, assignments, channels;
    int64_t threads;
    int64_t dtype;         /* enum element: of rows, y and out */
    int64_t level;
};

_Static_assert(sizeof(struct dispatch_call) == 16 * 8, "struct dispatch_call is packed as 8-byte fields");

/* What the threads of a scatter read: the call, and for each token the end of its list of assignments in `order`; it
 * starts where the list before it ends. */
struct scatter {
    const struct dispatch_call *call;
    int64_t *ends, *order; /* [T], [A] */
};

static inline const char *row_at(const struct dispatch_call *x, int64_t row) {
    return element_at(x->rows, row * x->rows_stride, x->dtype);
}

static inline char *out_at(const struct dispatch_call *x, int64_t row) {
    return (char *)x->out + row * x->channels * element_bytes(x->dtype);
}

#define PASSES "experts_rows.h"
#include "each_level.h"

struct variant {
    unit_function scatter, scatter_backward;
};

#define VARIANT(name) {scatter_unit_##name, scatter_backward_unit_##name}

static const struct variant variants[NUM_LEVELS] = EACH_VARIANT;

static const struct variant *variant_of(const struct dispatch_call *x) {
    return x->level < 0 || x->level > best_level() ? NULL : &variants[x->level];
}

/* Whether every index is a token. Looked at in every pass, since a wrong one would read or write elsewhere. */
static int index_is_inside(const struct dispatch_call *x) {
    if (!x->assignments) return 1;
    int64_t least = x->index[0], most = least;
    for (int64_t a = 1; a < x->assignments; a++) {
        least = smaller(least, x->index[a]);
        most = larger(most, x->index[a]);
    }
    if (least >= 0 && most < x->tokens) return 1;
    x->refused[0] = 1;
    x->refused[1] = least;
    x->refused[2] = most;
    return 0;
}

/* A counting sort. */
static void list_by_token(const struct scatter *lists) {
    const struct dispatch_call *x = lists->call;
    int64_t before = 0;
    memset(lists->ends, 0, (size_t)x->tokens * sizeof(int64_t));
    for (int64_t a = 0; a < x->assignments; a++) lists->ends[x->index[a]]++;
    for (int64_t t = 0; t < x->tokens; t++) {
        int64_t count = lists->ends[t];
        lists->ends[t] = before;
        before += count;
    }
    for (int64_t a = 0; a < x->assignments; a++) lists->order[lists->ends[x->index[a]]++] = a;
}

/* 0, or -1 where memory ran out. argument: what the units are given. */
static int64_t run(const struct dispatch_call *x, const void *argument, unit_function units, int64_t rows) {
    struct job job = {argument, units, (rows + UNIT_ROWS - 1) / UNIT_ROWS, x->threads, x->team, 64, 0, 0};
    return run_job(&job);
}

/* Both return 0; -1 where memory ran out; -2 where the machine does not have the instruction set asked for. Where
 * an index was refused, nothing was computed. */
int64_t experts_scatter(const struct dispatch_call *x) {
    const struct variant *variant = variant_of(x);
    if (!variant) return -2;
    if (!index_is_inside(x)) return 0;
    int64_t *memory = malloc((size_t)(x->tokens + x->assignments + 1) * sizeof *memory);
    if (!memory) return -1;
    struct scatter lists = {x, memory, memory + x->tokens};
    list_by_token(&lists);
    int64_t failed = run(x, &lists, variant->scatter, x->tokens);
    free(memory);
    return failed;
}

int64_t experts_scatter_backward(const struct dispatch_call *x) {
    const struct variant *variant = variant_of(x);
    if (!variant) return -2;
    return index_is_inside(x) ? run(x, x, variant->scatter_backward, x->assignments) : 0;
}
