"""Block-sparse attention, backward, in Triton: row terms first, then dQ over the lists and dK, dV over their transpose.

Recomputes P from the saved log-sum-exp (Dao, FlashAttention-2, 2023, algorithm 2), but in two kernels: each output
belongs to one program, so there is no float atomic and the same inputs give the same bits. The transposed lists make
dK and dV as sparse as the forward.
"""

import triton
import triton.language as tl

from mezzotint.kernels.triton_tiles import (
    LOG2E,
    add_product,
    bias_log2,
    dot_channels,
    load_parts,
    scale_parts,
    store_parts,
    valid_tokens,
    zero_parts,
)


@triton.jit
def attention_row_terms(
    out_ptr, d_out_ptr, lse_ptr, d_lse_ptr, lse_log2_ptr, delta_ptr, num_heads, num_q, num_tiles,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, d_lse_stride_b, d_lse_stride_h, d_lse_stride_n,
    V: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Per query: delta = sum(d_out * out) - d_lse, and the log-sum-exp in base 2; both fp32 [B, H, num_q], dense.

    Rows without a key get +inf and 0, so that exp2(s - lse) is 0 there and the other kernels need no case for them.
    """
    pid = tl.program_id(0)
    start = (pid % num_tiles) * TILE
    head = (pid // num_tiles).to(tl.int64)
    b = head // num_heads
    h = head % num_heads
    rows = start + tl.arange(0, TILE)
    cols = tl.arange(0, WIDTH)
    inside = rows < num_q
    mask = inside[:, None] & (cols[None, :] < V)
    first = head * num_q
    tokens = rows.to(tl.int64)
    d_out_base = d_out_ptr + (b * d_out_stride_b + h * d_out_stride_h) * UNIT
    d_out = tl.load(d_out_base + tokens[:, None] * d_out_stride_n * UNIT + cols[None, :], mask=mask, other=0.0)
    out = tl.load(out_ptr + first * V + tokens[:, None] * V + cols[None, :], mask=mask, other=0.0)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    lse = tl.load(lse_ptr + first + rows, mask=inside, other=float("-inf"))
    if d_lse_ptr is not None:
        d_lse_base = d_lse_ptr + b * d_lse_stride_b + h * d_lse_stride_h
        delta -= tl.load(d_lse_base + tokens * d_lse_stride_n, mask=inside, other=0.0)
    empty = lse == float("-inf")
    tl.store(lse_log2_ptr + first + rows, tl.where(empty, float("inf"), lse * LOG2E), mask=inside)
    tl.store(delta_ptr + first + rows, tl.where(empty, 0.0, delta), mask=inside)


@triton.jit
def attention_backward_dq(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_log2_ptr, delta_ptr, bias_ptr, dq_ptr, kv_num_ptr, kv_idx_ptr, q_len_ptr,
    k_len_ptr, scale, scale_log2, num_heads, num_q, num_k, num_tiles,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, bias_stride_b, bias_stride_h, bias_stride_n,
    num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes dq [B, H, num_q, D], dense: one program a query tile, over the forward's lists."""
    pid = tl.program_id(0)
    start_q = (pid % num_tiles) * TILE_Q
    head = (pid // num_tiles).to(tl.int64)
    b = head // num_heads
    h = head % num_heads
    q_block = start_q // BLOCK_Q
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_q = valid_tokens(q_len_ptr, q_block, start_q, num_q, BLOCK_Q)
    token = start_q.to(tl.int64)
    q_base = q_ptr + (b * q_stride_b + h * q_stride_h + token * q_stride_n) * UNIT
    d_out_base = d_out_ptr + (b * d_out_stride_b + h * d_out_stride_h + token * d_out_stride_n) * UNIT
    k_base = k_ptr + (b * k_stride_b + (h // GROUP) * k_stride_h) * UNIT
    v_base = v_ptr + (b * v_stride_b + (h // GROUP) * v_stride_h) * UNIT
    bias_offset = b * bias_stride_b + h * bias_stride_h
    first = head * num_q + start_q
    q0, q1 = load_parts(q_base, rows, q_stride_n, valid_q, D, D0, D1, RAGGED_Q, UNIT, UPCAST)
    do0, do1 = load_parts(d_out_base, rows, d_out_stride_n, valid_q, V, V0, V1, RAGGED_Q, UNIT, UPCAST)
    lse = tl.load(lse_log2_ptr + first + rows, mask=rows < valid_q, other=float("inf"))
    delta = tl.load(delta_ptr + first + rows, mask=rows < valid_q, other=0.0)
    dq0, dq1 = zero_parts(TILE_Q, D0, D1)
    idx_base = kv_idx_ptr + b * idx_stride_b + h * idx_stride_h + q_block.to(tl.int64) * idx_stride_n
    PARTS: tl.constexpr = BLOCK_K // TILE_K
    turns = tl.load(kv_num_ptr + b * num_stride_b + h * num_stride_h + q_block) * PARTS
    block = tl.load(idx_base, mask=turns > 0, other=0)
    for turn in range(0, turns):
        start_k = block * BLOCK_K + (turn % PARTS) * TILE_K
        offset = start_k.to(tl.int64)
        valid_k = valid_tokens(k_len_ptr, block, start_k, num_k, BLOCK_K)
        block = tl.load(idx_base + (turn + 1) // PARTS, mask=turn + 1 < turns, other=0)
        k0, k1 = load_parts(k_base + offset * k_stride_n * UNIT, keys, k_stride_n, valid_k, D, D0, D1, RAGGED_K, UNIT,
                            UPCAST)  # fmt: skip
        v0, v1 = load_parts(v_base + offset * v_stride_n * UNIT, keys, v_stride_n, valid_k, V, V0, V1, RAGGED_K, UNIT,
                            UPCAST)  # fmt: skip
        s = dot_channels(q0, q1, k0, k1, D1 > 0) * scale_log2
        if bias_ptr is not None:
            s += bias_log2(bias_ptr + bias_offset + offset * bias_stride_n, keys, bias_stride_n, valid_k)[None, :]
        if RAGGED_K:
            s = tl.where(keys[None, :] < valid_k, s, float("-inf"))
        p = tl.exp2(s - lse[:, None])
        ds = p * (dot_channels(do0, do1, v0, v1, V1 > 0) - delta[:, None])
        dq0, dq1 = add_product(dq0, dq1, ds.to(k0.dtype), k0, k1, D1 > 0)
    dq0, dq1 = scale_parts(dq0, dq1, scale, D1 > 0)
    store_parts(dq_ptr + first * D, rows, num_q - start_q, dq0, dq1, D, D0, D1)


@triton.jit
def attention_backward_dkdv(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_log2_ptr, delta_ptr, bias_ptr, dk_ptr, dv_ptr, d_bias_ptr, q_num_ptr, q_idx_ptr,
    q_len_ptr, k_len_ptr, scale, scale_log2, num_kv_heads, num_q, num_k, num_tiles,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    d_out_stride_b, d_out_stride_h, d_out_stride_n, bias_stride_b, bias_stride_h, bias_stride_n,
    num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes valid rows of dk [B, G, num_k, D], dv [B, G, num_k, V], and d_bias fp32 [B, H, num_k]; all dense.

    One program a key tile of one key head, over the transposed lists of its GROUP query heads, one after the other:
    the sum over a head group is part of the loop, and always in the same order. Works on the transposes S^T and P^T.
    """
    pid = tl.program_id(0)
    start_k = (pid % num_tiles) * TILE_K
    kv_head = (pid // num_tiles).to(tl.int64)
    b = kv_head // num_kv_heads
    g = kv_head % num_kv_heads
    k_block = start_k // BLOCK_K
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_k = valid_tokens(k_len_ptr, k_block, start_k, num_k, BLOCK_K)
    token = start_k.to(tl.int64)
    k_base = k_ptr + (b * k_stride_b + g * k_stride_h + token * k_stride_n) * UNIT
    v_base = v_ptr + (b * v_stride_b + g * v_stride_h + token * v_stride_n) * UNIT
    k0, k1 = load_parts(k_base, keys, k_stride_n, valid_k, D, D0, D1, RAGGED_K, UNIT, UPCAST)
    v0, v1 = load_parts(v_base, keys, v_stride_n, valid_k, V, V0, V1, RAGGED_K, UNIT, UPCAST)
    dk0, dk1 = zero_parts(TILE_K, D0, D1)
    dv0, dv1 = zero_parts(TILE_K, V0, V1)
    PARTS: tl.constexpr = BLOCK_Q // TILE_Q
    for member in range(0, GROUP):
        h = g * GROUP + member
        head = b * num_kv_heads * GROUP + h
        q_base = q_ptr + (b * q_stride_b + h * q_stride_h) * UNIT
        d_out_base = d_out_ptr + (b * d_out_stride_b + h * d_out_stride_h) * UNIT
        if bias_ptr is not None:
            bias_base = bias_ptr + b * bias_stride_b + h * bias_stride_h + token * bias_stride_n
            bias = bias_log2(bias_base, keys, bias_stride_n, valid_k)
            d_bias = tl.zeros([TILE_K], dtype=tl.float32)
        idx_base = q_idx_ptr + b * idx_stride_b + h * idx_stride_h + k_block.to(tl.int64) * idx_stride_n
        turns = tl.load(q_num_ptr + b * num_stride_b + h * num_stride_h + k_block) * PARTS
        block = tl.load(idx_base, mask=turns > 0, other=0)
        for turn in range(0, turns):
            start_q = block * BLOCK_Q + (turn % PARTS) * TILE_Q
            offset = start_q.to(tl.int64)
            valid_q = valid_tokens(q_len_ptr, block, start_q, num_q, BLOCK_Q)
            block = tl.load(idx_base + (turn + 1) // PARTS, mask=turn + 1 < turns, other=0)
            q0, q1 = load_parts(q_base + offset * q_stride_n * UNIT, rows, q_stride_n, valid_q, D, D0, D1, RAGGED_Q,
                                UNIT, UPCAST)  # fmt: skip
            do0, do1 = load_parts(d_out_base + offset * d_out_stride_n * UNIT, rows, d_out_stride_n, valid_q, V, V0, V1,
                                  RAGGED_Q, UNIT, UPCAST)  # fmt: skip
            first = head * num_q + offset
            lse = tl.load(lse_log2_ptr + first + rows, mask=rows < valid_q, other=float("inf"))
            delta = tl.load(delta_ptr + first + rows, mask=rows < valid_q, other=0.0)
            s = dot_channels(k0, k1, q0, q1, D1 > 0) * scale_log2
            if bias_ptr is not None:
                s += bias[:, None]
            # Keys past the end have a P that means nothing; each key's sums stay in its own row, never stored.
            p = tl.exp2(s - lse[None, :])
            dv0, dv1 = add_product(dv0, dv1, p.to(do0.dtype), do0, do1, V1 > 0)
            ds = p * (dot_channels(v0, v1, do0, do1, V1 > 0) - delta[None, :])
            dk0, dk1 = add_product(dk0, dk1, ds.to(q0.dtype), q0, q1, D1 > 0)
            if bias_ptr is not None:
                d_bias += tl.sum(ds, 1)
        if bias_ptr is not None:
            tl.store(d_bias_ptr + head * num_k + token + keys, d_bias, mask=keys < valid_k)
    dk0, dk1 = scale_parts(dk0, dk1, scale, D1 > 0)
    store_parts(dk_ptr + (kv_head * num_k + token) * D, keys, valid_k, dk0, dk1, D, D0, D1)
    store_parts(dv_ptr + (kv_head * num_k + token) * V, keys, valid_k, dv0, dv1, V, V0, V1)
