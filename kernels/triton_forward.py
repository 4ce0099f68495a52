"""Block-sparse attention, forward, in Triton: one program walks one query tile's list of key blocks.

Online softmax in base 2 (Milakov and Gimelshein, 2018; Dao, FlashAttention-2, 2023, algorithm 1). Raw operands go into
the products, which accumulate in fp32; scale * log2(e) is applied in fp32 afterwards, by the same expression as in the
backward.
"""

import triton
import triton.language as tl

from mezzotint.kernels.triton_arguments import SIZES
from mezzotint.kernels.triton_tiles import (
    LN2,
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
def attention_forward(
    q_ptr, k_ptr, v_ptr, bias_ptr, num_ptr, idx_ptr, mask_ptr, bits_ptr, q_len_ptr, k_len_ptr, out_ptr, lse_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    bias_stride_b, bias_stride_h, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n,
    num_q, num_k, num_heads, num_tiles, scale_log2,
    GROUP: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, RAGGED_Q: tl.constexpr, RAGGED_K: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Writes out [B, H, num_q, V] and lse fp32 [B, H, num_q] (natural log), both dense; num_tiles is per head."""
    start_q, head, b, h = program_place(num_tiles, num_heads, TILE_Q)
    q, k = (q_ptr, q_stride_b, q_stride_h, q_stride_n), (k_ptr, k_stride_b, k_stride_h, k_stride_n)
    v = (v_ptr, v_stride_b, v_stride_h, v_stride_n)
    lists = (num_ptr, idx_ptr, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n)
    q_block = start_q // BLOCK_Q
    rows = tl.arange(0, TILE_Q)
    keys = tl.arange(0, TILE_K)
    valid_q = valid_tokens(q_len_ptr, q_block, start_q, num_q, BLOCK_Q)
    q0, q1 = load_parts(q, b, h, start_q, rows, valid_q, D, D0, D1, RAGGED_Q, UNIT, UPCAST)
    acc0, acc1 = zero_parts(TILE_Q, V0, V1)
    m = tl.full([TILE_Q], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE_Q], dtype=tl.float32)
    PARTS: tl.constexpr = BLOCK_K // TILE_K
    first, count = list_start(lists, b, h, q_block)
    next_block, next_mask = list_entry(lists, mask_ptr, first, count > 0)
    for turn in range(0, count * PARTS):
        block, mask = next_block, next_mask
        start_k = block * BLOCK_K + (turn % PARTS) * TILE_K
        valid_k = valid_tokens(k_len_ptr, block, start_k, num_k, BLOCK_K)
        # Fetched one turn ahead, so that the loads of the next K do not wait for their own address.
        next_block, next_mask = list_entry(lists, mask_ptr, first + (turn + 1) // PARTS, turn + 1 < count * PARTS)
        k0, k1 = load_parts(k, b, h // GROUP, start_k, keys, valid_k, D, D0, D1, RAGGED_K, UNIT, UPCAST)
        s = dot_channels(q0, q1, k0, k1, D1 > 0) * scale_log2
        if bias_ptr is not None:
            bias = bias_ptr + b * bias_stride_b + h * bias_stride_h + start_k
            s += bias_log2(bias, keys, valid_k)[None, :]
        if mask_ptr is not None:
            s = keep_marked(s, bits_ptr, mask, start_q % BLOCK_Q, start_k % BLOCK_K, TILE_Q, TILE_K, BLOCK_Q,
                            BLOCK_K)  # fmt: skip
        if RAGGED_K:
            s = tl.where(keys[None, :] < valid_k, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        # A row that has met no key yet keeps m at -inf; 0 in its place avoids -inf - -inf.
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        decay = tl.exp2(m - shift)
        total = total * decay + tl.sum(p, 1)
        m = m_new
        v0, v1 = load_parts(v, b, h // GROUP, start_k, keys, valid_k, V, V0, V1, RAGGED_K, UNIT, UPCAST)
        acc0, acc1 = scale_parts(acc0, acc1, decay[:, None], V1 > 0)
        acc0, acc1 = add_product(acc0, acc1, p.to(v_ptr.dtype.element_ty), v0, v1, V1 > 0)
    total = tl.where(rows < valid_q, total, 0.0)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (m + tl.log2(total)) * LN2)
    acc0, acc1 = scale_parts(acc0, acc1, tl.where(empty, 0.0, 1.0 / total)[:, None], V1 > 0)
    row = head * num_q + start_q
    store_parts(out_ptr + row * V, rows, num_q - start_q, acc0, acc1, V, V0, V1)
    tl.store(lse_ptr + row + rows, lse, mask=rows < num_q - start_q)
