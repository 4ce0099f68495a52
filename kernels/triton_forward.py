"""Block-sparse attention, forward, in Triton: one program walks one query tile's list of key blocks.

Online softmax in base 2 (Milakov and Gimelshein, 2018; Dao, FlashAttention-2, 2023, algorithm 1). Programs are numbered
head by head, so that those which run together read the same K and V out of L2. Raw operands go into the products, which
accumulate in fp32; scale * log2(e) is applied in fp32 afterwards, by the same expression as in the backward.
"""

import triton
import triton.language as tl

from mezzotint.kernels.triton_tiles import (
    LN2,
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
def attention_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, bias_ptr, kv_num_ptr, kv_idx_ptr, q_len_ptr, k_len_ptr,
    scale_log2, num_heads, num_q, num_k, num_tiles,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    bias_stride_b, bias_stride_h, bias_stride_n, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes out [B, H, num_q, V] and lse fp32 [B, H, num_q] (natural log), both dense; num_tiles is per head."""
    pid = tl.program_id(0)
    start_q = (pid % num_tiles) * TILE_Q
    head = (pid // num_tiles).to(tl.int64)
    b = head // num_heads
    h = head % num_heads
    q_block = start_q // BLOCK_Q
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_q = valid_tokens(q_len_ptr, q_block, start_q, num_q, BLOCK_Q)
    q_base = q_ptr + (b * q_stride_b + h * q_stride_h + start_q.to(tl.int64) * q_stride_n) * UNIT
    k_base = k_ptr + (b * k_stride_b + (h // GROUP) * k_stride_h) * UNIT
    v_base = v_ptr + (b * v_stride_b + (h // GROUP) * v_stride_h) * UNIT
    bias_offset = b * bias_stride_b + h * bias_stride_h
    q0, q1 = load_parts(q_base, rows, q_stride_n, valid_q, D, D0, D1, RAGGED_Q, UNIT, UPCAST)
    acc0, acc1 = zero_parts(TILE_Q, V0, V1)
    m = tl.full([TILE_Q], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE_Q], dtype=tl.float32)
    idx_base = kv_idx_ptr + b * idx_stride_b + h * idx_stride_h + q_block.to(tl.int64) * idx_stride_n
    PARTS: tl.constexpr = BLOCK_K // TILE_K
    turns = tl.load(kv_num_ptr + b * num_stride_b + h * num_stride_h + q_block) * PARTS
    block = tl.load(idx_base, mask=turns > 0, other=0)
    for turn in range(0, turns):
        start_k = block * BLOCK_K + (turn % PARTS) * TILE_K
        offset = start_k.to(tl.int64)
        valid_k = valid_tokens(k_len_ptr, block, start_k, num_k, BLOCK_K)
        # Fetched one turn ahead, so that the loads of the next K do not wait for their own address.
        block = tl.load(idx_base + (turn + 1) // PARTS, mask=turn + 1 < turns, other=0)
        k0, k1 = load_parts(k_base + offset * k_stride_n * UNIT, keys, k_stride_n, valid_k, D, D0, D1, RAGGED_K, UNIT,
                            UPCAST)  # fmt: skip
        s = dot_channels(q0, q1, k0, k1, D1 > 0) * scale_log2
        if bias_ptr is not None:
            s += bias_log2(bias_ptr + bias_offset + offset * bias_stride_n, keys, bias_stride_n, valid_k)[None, :]
        if RAGGED_K:
            s = tl.where(keys[None, :] < valid_k, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        # A row that has met no key yet keeps m at -inf; 0 in its place avoids -inf - -inf.
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        decay = tl.exp2(m - shift)
        total = total * decay + tl.sum(p, 1)
        m = m_new
        v0, v1 = load_parts(v_base + offset * v_stride_n * UNIT, keys, v_stride_n, valid_k, V, V0, V1, RAGGED_K, UNIT,
                            UPCAST)  # fmt: skip
        acc0, acc1 = scale_parts(acc0, acc1, decay[:, None], V1 > 0)
        acc0, acc1 = add_product(acc0, acc1, p.to(v0.dtype), v0, v1, V1 > 0)
    total = tl.where(rows < valid_q, total, 0.0)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (m + tl.log2(total)) * LN2)
    acc0, acc1 = scale_parts(acc0, acc1, tl.where(empty, 0.0, 1.0 / total)[:, None], V1 > 0)
    first = head * num_q + start_q
    store_parts(out_ptr + first * V, rows, num_q - start_q, acc0, acc1, V, V0, V1)
    tl.store(lse_ptr + first + rows, lse, mask=rows < num_q - start_q)
