"""Block-sparse attention, backward, in Triton: row terms first, then dQ over the lists and dK, dV over their transpose.

Recomputes P from the saved log-sum-exp (Dao, FlashAttention-2, 2023, algorithm 2), but in two kernels: each output
belongs to one program, so there is no float atomic and the same inputs give the same bits. The transposed lists make
dK and dV as sparse as the forward.
"""

import triton
import triton.language as tl

from mezzotint.kernels.triton_arguments import SIZES
from mezzotint.kernels.triton_tiles import (
    LOG2E,
    add_product,
    bias_log2,
    dot_channels,
    keep_marked,
    list_entry,
    list_start,
    load_parts,
    program_place,
    scale_parts,
    store_parts,
    valid_tokens,
    zero_parts,
)


@triton.jit(do_not_specialize=SIZES)
def attention_row_terms(
    out_ptr, d_out_ptr, lse_ptr, d_lse_ptr, lse_log2_ptr, delta_ptr,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, num_q, num_heads, num_tiles,
    V: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Per query: delta = sum(d_out * out) - d_lse, and the log-sum-exp in base 2; both fp32 [B, H, num_q], dense.

    Rows without a key get +inf and 0, so that exp2(s - lse) is 0 there and the other kernels need no case for them.
    """
    start, head, b, h = program_place(num_tiles, num_heads, TILE)
    rows = tl.arange(0, TILE)
    inside = rows < num_q - start
    d_out = (d_out_ptr, d_out_stride_b, d_out_stride_h, d_out_stride_n)
    d_out, _ = load_parts(d_out, b, h, start, rows, num_q - start, V, WIDTH, 0, True, UNIT, True)
    first = head * num_q + start
    cols = tl.arange(0, WIDTH)
    mask = inside[:, None] & (cols[None, :] < V)
    out = tl.load(out_ptr + first * V + rows[:, None] * V + cols[None, :], mask=mask, other=0.0)
    delta = tl.sum(out.to(tl.float32) * d_out, 1)
    lse = tl.load(lse_ptr + first + rows, mask=inside, other=float("-inf"))
    if d_lse_ptr is not None:
        delta -= tl.load(d_lse_ptr + first + rows, mask=inside, other=0.0)
    empty = lse == float("-inf")
    tl.store(lse_log2_ptr + first + rows, tl.where(empty, float("inf"), lse * LOG2E), mask=inside)
    tl.store(delta_ptr + first + rows, tl.where(empty, 0.0, delta), mask=inside)


@triton.jit
def transpose_bits(bits_ptr, out_ptr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bit masks by query, int32 [P, BLOCK_Q, words], to the same by key, int32 [P, BLOCK_K, words of queries].

    One program for each word of keys of each mask. dK and dV have their keys in rows.
    """
    WORDS: tl.constexpr = (BLOCK_K + 31) // 32
    OUT_WORDS: tl.constexpr = (BLOCK_Q + 31) // 32
    mask = (tl.program_id(0) // WORDS).to(tl.int64)
    word = tl.program_id(0) % WORDS
    lanes = tl.arange(0, 32)
    for part in tl.static_range(OUT_WORDS):
        queries = part * 32 + lanes
        words = tl.load(bits_ptr + (mask * BLOCK_Q + queries) * WORDS + word, mask=queries < BLOCK_Q, other=0)
        bits = (words[None, :] >> lanes[:, None]) & 1
        by_key = tl.sum(bits << lanes[None, :], 1)
        keys = word * 32 + lanes
        tl.store(out_ptr + (mask * BLOCK_K + keys) * OUT_WORDS + part, by_key, mask=keys < BLOCK_K)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_dq(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_log2_ptr, delta_ptr, bias_ptr, num_ptr, idx_ptr, mask_ptr, bits_ptr, q_len_ptr,
    k_len_ptr, dq_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, bias_stride_b, bias_stride_h, num_stride_b, num_stride_h,
    idx_stride_b, idx_stride_h, idx_stride_n, num_q, num_k, num_heads, num_tiles, scale, scale_log2,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes dq [B, H, num_q, D], dense: one program a query tile, over the forward's lists."""
    start_q, head, b, h = program_place(num_tiles, num_heads, TILE_Q)
    q, k = (q_ptr, q_stride_b, q_stride_h, q_stride_n), (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v, d_out = (v_ptr, v_stride_b, v_stride_h, v_stride_n), (d_out_ptr, d_out_stride_b, d_out_stride_h, d_out_stride_n)
    lists = (num_ptr, idx_ptr, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n)
    q_block = start_q // BLOCK_Q
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_q = valid_tokens(q_len_ptr, q_block, start_q, num_q, BLOCK_Q)
    q0, q1 = load_parts(q, b, h, start_q, rows, valid_q, D, D0, D1, RAGGED_Q, UNIT, UPCAST)
    do0, do1 = load_parts(d_out, b, h, start_q, rows, valid_q, V, V0, V1, RAGGED_Q, UNIT, UPCAST)
    lse = tl.load(lse_log2_ptr + head * num_q + start_q + rows, mask=rows < valid_q, other=float("inf"))
    delta = tl.load(delta_ptr + head * num_q + start_q + rows, mask=rows < valid_q, other=0.0)
    dq0, dq1 = zero_parts(TILE_Q, D0, D1)
    PARTS: tl.constexpr = BLOCK_K // TILE_K
    first, count = list_start(lists, b, h, q_block)
    next_block, next_mask = list_entry(lists, mask_ptr, first, count > 0)
    for turn in range(0, count * PARTS):
        block, mask = next_block, next_mask
        start_k = block * BLOCK_K + (turn % PARTS) * TILE_K
        valid_k = valid_tokens(k_len_ptr, block, start_k, num_k, BLOCK_K)
        next_block, next_mask = list_entry(lists, mask_ptr, first + (turn + 1) // PARTS, turn + 1 < count * PARTS)
        k0, k1 = load_parts(k, b, h // GROUP, start_k, keys, valid_k, D, D0, D1, RAGGED_K, UNIT, UPCAST)
        v0, v1 = load_parts(v, b, h // GROUP, start_k, keys, valid_k, V, V0, V1, RAGGED_K, UNIT, UPCAST)
        s = dot_channels(q0, q1, k0, k1, D1 > 0) * scale_log2
        if bias_ptr is not None:
            bias = bias_ptr + b * bias_stride_b + h * bias_stride_h + start_k
            s += bias_log2(bias, keys, valid_k)[None, :]
        if mask_ptr is not None:
            s = keep_marked(s, bits_ptr, mask, start_q % BLOCK_Q, start_k % BLOCK_K, TILE_Q, TILE_K, BLOCK_Q,
                            BLOCK_K)  # fmt: skip
        if RAGGED_K:
            s = tl.where(keys[None, :] < valid_k, s, float("-inf"))
        p = tl.exp2(s - lse[:, None])
        ds = p * (dot_channels(do0, do1, v0, v1, V1 > 0) - delta[:, None])
        dq0, dq1 = add_product(dq0, dq1, ds.to(k_ptr.dtype.element_ty), k0, k1, D1 > 0)
    dq0, dq1 = scale_parts(dq0, dq1, scale, D1 > 0)
    store_parts(dq_ptr + (head * num_q + start_q) * D, rows, num_q - start_q, dq0, dq1, D, D0, D1)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_dkdv(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_log2_ptr, delta_ptr, bias_ptr, num_ptr, idx_ptr, mask_ptr, bits_ptr, q_len_ptr,
    k_len_ptr, dk_ptr, dv_ptr, d_bias_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, bias_stride_b, bias_stride_h, num_stride_b, num_stride_h,
    idx_stride_b, idx_stride_h, idx_stride_n, num_q, num_k, num_heads, num_tiles, scale, scale_log2,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes valid rows of dk [B, H, num_k, D], dv [B, H, num_k, V] and d_bias fp32 [B, H, num_k], all dense.

    One program a key tile of one query head, over the transposed lists: heads that share their keys each write a dk and
    dv of their own, to be added up. Works on the transposes S^T and P^T, with bit masks by key. lse and delta are read
    where they are used, so that they take no registers before.
    """
    start_k, head, b, h = program_place(num_tiles, num_heads, TILE_K)
    q, k = (q_ptr, q_stride_b, q_stride_h, q_stride_n), (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v, d_out = (v_ptr, v_stride_b, v_stride_h, v_stride_n), (d_out_ptr, d_out_stride_b, d_out_stride_h, d_out_stride_n)
    lists = (num_ptr, idx_ptr, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n)
    k_block = start_k // BLOCK_K
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_k = valid_tokens(k_len_ptr, k_block, start_k, num_k, BLOCK_K)
    k0, k1 = load_parts(k, b, h // GROUP, start_k, keys, valid_k, D, D0, D1, RAGGED_K, UNIT, UPCAST)
    v0, v1 = load_parts(v, b, h // GROUP, start_k, keys, valid_k, V, V0, V1, RAGGED_K, UNIT, UPCAST)
    dk0, dk1 = zero_parts(TILE_K, D0, D1)
    dv0, dv1 = zero_parts(TILE_K, V0, V1)
    if bias_ptr is not None:
        key_bias = bias_log2(bias_ptr + b * bias_stride_b + h * bias_stride_h + start_k, keys, valid_k)
        d_bias = tl.zeros([TILE_K], dtype=tl.float32)
    PARTS: tl.constexpr = BLOCK_Q // TILE_Q
    first, count = list_start(lists, b, h, k_block)
    next_block, next_mask = list_entry(lists, mask_ptr, first, count > 0)
    for turn in range(0, count * PARTS):
        block, mask = next_block, next_mask
        start_q = block * BLOCK_Q + (turn % PARTS) * TILE_Q
        valid_q = valid_tokens(q_len_ptr, block, start_q, num_q, BLOCK_Q)
        next_block, next_mask = list_entry(lists, mask_ptr, first + (turn + 1) // PARTS, turn + 1 < count * PARTS)
        q0, q1 = load_parts(q, b, h, start_q, rows, valid_q, D, D0, D1, RAGGED_Q, UNIT, UPCAST)
        do0, do1 = load_parts(d_out, b, h, start_q, rows, valid_q, V, V0, V1, RAGGED_Q, UNIT, UPCAST)
        s = dot_channels(k0, k1, q0, q1, D1 > 0) * scale_log2
        if bias_ptr is not None:
            s += key_bias[:, None]
        if mask_ptr is not None:
            s = keep_marked(s, bits_ptr, mask, start_k % BLOCK_K, start_q % BLOCK_Q, TILE_K, TILE_Q, BLOCK_K,
                            BLOCK_Q)  # fmt: skip
        # Keys past the end have a P that means nothing; each key's sums stay in its own row, never stored.
        row = head * num_q + start_q
        lse = tl.load(lse_log2_ptr + row + rows, mask=rows < valid_q, other=float("inf"))
        p = tl.exp2(s - lse[None, :])
        dv0, dv1 = add_product(dv0, dv1, p.to(d_out_ptr.dtype.element_ty), do0, do1, V1 > 0)
        dp = dot_channels(v0, v1, do0, do1, V1 > 0)
        delta = tl.load(delta_ptr + row + rows, mask=rows < valid_q, other=0.0)
        ds = p * (dp - delta[None, :])
        dk0, dk1 = add_product(dk0, dk1, ds.to(q_ptr.dtype.element_ty), q0, q1, D1 > 0)
        if bias_ptr is not None:
            d_bias += tl.sum(ds, 1)
    if bias_ptr is not None:
        tl.store(d_bias_ptr + head * num_k + start_k + keys, d_bias, mask=keys < valid_k)
    dk0, dk1 = scale_parts(dk0, dk1, scale, D1 > 0)
    row = head * num_k + start_k
    store_parts(dk_ptr + row * D, keys, valid_k, dk0, dk1, D, D0, D1)
    store_parts(dv_ptr + row * V, keys, valid_k, dv0, dv1, V, V0, V1)
