/* Elements of tensors, sizes, and the memory of a thread. */
#ifndef MEZZOTINT_MEMORY_H
#define MEZZOTINT_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum element { ELEMENT_F32 = 0, ELEMENT_BF16 = 1 };

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static inline int64_t element_bytes(int64_t dtype) { return dtype == ELEMENT_BF16 ? 2 : 4; }

static inline const char *element_at(const void *base, int64_t index, int64_t dtype) {
    return (const char *)base + index * element_bytes(dtype);
}

/* Memory is carved from one block; with base 0 the same walk measures how much is needed. */
struct arena {
    uintptr_t at;
};

/* Room for `count` 4-byte words, on a cache line of its own, with slack: packing stores whole vectors, and the last
 * one of a row may reach over the end. */
static inline void *carve(struct arena *arena, int64_t count) {
    void *start = (void *)arena->at;
    arena->at += (uintptr_t)round_up(count * 4 + 64, 64);
    return start;
}

#endif
