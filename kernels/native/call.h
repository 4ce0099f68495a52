/* One call of attention as the caller describes it, and the walk over its tiles and lists of blocks.
 *
 * Shape suffixes in comments: B batch, H query heads, G key/value heads, N queries, M keys, D head channels,
 * V value channels. Strides are in elements; last dimensions are dense.
 */
#ifndef MEZZOTINT_CALL_H
#define MEZZOTINT_CALL_H

#include <math.h>

#include "memory.h"

#define LANES 64  /* queries of one tile: four vectors of 16 */
/* double on purpose: a score of 1000 has 3e-5 of rounding as it is, and constants rounded to fp32 would add to it. */
#define LOG2E 1.4426950408889634
#define LN2 0.6931471805599453

/* How the rows of one key/value head are packed, see pack.h. */
enum packing { AS_ROWS, AS_ROW_PAIRS };

/* Every field is 8 bytes wide, so that the caller packs them without knowing about alignment (cpu_attention.py
 * writes them in this order). */
struct attention_call {
    const void *q, *k, *v, *d_out; /* d_out is NULL in the forward pass */
    void *out;                     /* [B, H, N, V] contiguous; written forward, read backward */
    float *lse;                    /* [B, H, N], natural log; written forward, read backward */
    const float *d_lse;            /* [B, H, N] or NULL */
    void *dq, *dk, *dv;            /* contiguous; dk and dv are fp32 with a leading [parts] where parts > 1 */
    float *d_bias;                 /* [parts, B, H, M], zeroed by the caller, or NULL */
    const float *key_bias;         /* added to scale * q.k; NULL for none */
    const int32_t *kv_num, *kv_idx; /* NULL for dense attention: one block holds every key */
    const int32_t *q_len, *k_len;   /* NULL: every block is whole, but for the ragged last one */
    const int32_t *mask_idx;        /* beside kv_idx: -1 where a block counts whole, else its mask; or NULL */
    const int32_t *mask_bits;       /* [masks][block_q][words]: bit b of word w is key 32 w + b of the block */
    int64_t q_stride[3], k_stride[3], v_stride[3], d_out_stride[3]; /* batch, head, token */
    int64_t bias_stride[2], num_stride[2], idx_stride[3];           /* batch, head (, query block) */
    int64_t batch, heads, groups, num_q, num_k, head_dim, value_dim;
    int64_t block_q, block_k;
    int64_t parts;   /* units of work a key/value head is split into */
    int64_t threads;
    int64_t dtype;   /* enum element, of q, k, v, d_out, out */
    int64_t level;   /* instruction set, see attention.c */
    void *team;      /* GOMP_parallel, or NULL: threads are then started for this call */
    double scale;
};

/* A stretch of at most LANES queries of one block. `valid` of its `total` tokens are not padding. */
struct query_tile {
    int64_t batch, head, block, first, total, valid;
};

/* Keys first .. first + keys - 1. `rows` is keys rounded up to even, since the bf16 product takes keys in pairs; the
 * row added is a zeroed row of the packed keys and is masked. A partly masked block has a run of its own, which starts
 * at key `offset` of the block: `mask` then holds its words, a row for each query of the tile. */
struct key_run {
    int64_t first, keys, rows, offset;
    const int32_t *mask;
};

/* A place in the list of one query block. `bits` is the row of the tile's first query in the first mask. */
struct key_walk {
    const int32_t *blocks, *masks, *bits;
    int64_t count, at, offset;
};

static inline int64_t num_k_blocks(const struct attention_call *x) {
    return (x->num_k + x->block_k - 1) / x->block_k;
}

static inline int64_t padded_keys(const struct attention_call *x) { return num_k_blocks(x) * x->block_k; }

static inline int64_t tiles_per_block(const struct attention_call *x) { return (x->block_q + LANES - 1) / LANES; }

static inline int64_t tiles_per_head(const struct attention_call *x) {
    return (x->num_q + x->block_q - 1) / x->block_q * tiles_per_block(x);
}

/* Tile `index` of a head; total <= 0 where a ragged last block has no token left for it. */
static inline struct query_tile tile_at(const struct attention_call *x, int64_t batch, int64_t head, int64_t index) {
    int64_t block = index / tiles_per_block(x), inside = index % tiles_per_block(x) * LANES;
    struct query_tile tile = {batch, head, block, block * x->block_q + inside, 0, 0};
    tile.total = smaller(smaller(LANES, x->block_q), x->num_q - tile.first);
    tile.valid = x->q_len ? larger(0, smaller(tile.total, x->q_len[block] - inside)) : tile.total;
    return tile;
}

static inline int64_t valid_keys(const struct attention_call *x, int64_t block) {
    int64_t present = smaller(x->block_k, x->num_k - block * x->block_k);
    return x->k_len ? smaller(present, x->k_len[block]) : present;
}

/* Words of one query's row of a mask. */
static inline int64_t mask_words(const struct attention_call *x) { return (x->block_k + 31) / 32; }

static inline struct key_walk keys_of(const struct attention_call *x, const struct query_tile *tile) {
    struct key_walk walk = {NULL, NULL, NULL, 1, 0, 0};
    if (!x->kv_num) return walk;
    int64_t list = tile->batch * x->idx_stride[0] + tile->head * x->idx_stride[1] + tile->block * x->idx_stride[2];
    walk.count = x->kv_num[tile->batch * x->num_stride[0] + tile->head * x->num_stride[1] + tile->block];
    walk.blocks = x->kv_idx + list;
    if (!x->mask_idx) return walk;
    walk.masks = x->mask_idx + list;
    walk.bits = x->mask_bits + (tile->first - tile->block * x->block_q) * mask_words(x);
    return walk;
}

/* The next run of at most `room` (even) adjacent keys, crossing whole blocks that follow each other; rows is 0 at the
 * end. A run never grows past an odd number of keys: that is the ragged end of a block. */
static inline struct key_run next_run(const struct attention_call *x, struct key_walk *walk, int64_t room) {
    struct key_run run = {0, 0, 0, 0, NULL};
    while (walk->at < walk->count && run.keys < room) {
        int64_t block = walk->blocks ? walk->blocks[walk->at] : 0, left = valid_keys(x, block) - walk->offset;
        int64_t mask = walk->masks ? walk->masks[walk->at] : -1;
        if (left > 0) {
            int64_t start = block * x->block_k + walk->offset, keys = smaller(left, room - run.keys);
            if (run.keys && (mask >= 0 || start != run.first + run.keys)) break;
            if (!run.keys) run.first = start;
            if (mask >= 0) run.mask = walk->bits + mask * x->block_q * mask_words(x), run.offset = walk->offset;
            run.keys += keys;
            walk->offset += keys;
            if (keys < left) break;
        }
        walk->at++;
        walk->offset = 0;
        if (run.mask) break;
    }
    run.rows = round_up(run.keys, 2);
    return run;
}

/* What is added to scale * q.k for each row of a run, both times `unit`. */
static inline void fill_bias(const struct attention_call *x, const struct query_tile *tile, struct key_run run,
                             double unit, float *bias) {
    const float *given = x->key_bias;
    if (given) given += tile->batch * x->bias_stride[0] + tile->head * x->bias_stride[1] + run.first;
    for (int64_t i = 0; i < run.keys; i++) bias[i] = given ? (float)(given[i] * unit) : 0.0f;
    if (run.rows > run.keys) bias[run.keys] = -INFINITY;
}

#endif
