"""Block-sparse attention on a CPU from torch's own operators, for machines without a C compiler.

The kept blocks of keys are gathered, and torch's flash kernel runs with the blocks of queries in its batch dimension
and one head. Rows of the layout that keep the same number of blocks go through one call. Shape suffixes: B batch,
H query heads, G key/value heads, N query tokens, M key tokens, D head channels, V value channels; r rows (batch, head
and block of queries), NQ and NK blocks, c kept blocks of a row.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels.attention_check import check_arguments
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_masks import unpack_bits

GATHERED_ELEMENTS = 2**24
"""Most elements of K that one call gathers: 32 MB in bf16."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class _Call:
    """Rows that keep equally many blocks, some of each row's in part or none of any row's.

    `keys`, `bias` and `masks` index the blocks of K and V, of the bias, and the bit masks (-1: the block is whole).
    """

    rows: Tensor  # [r]
    keys: Tensor  # [r, c]
    bias: Tensor  # [r, c]
    masks: Tensor | None  # [r, c]


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + key_bias) v over the pairs that the layout keeps.

    q [B, H, N, D], k [B, G, M, D], v [B, G, M, V] in fp32, bf16 or fp16; key_bias fp32 [B or 1, H or 1, M]. Returns out
    [B, H, N, V] in q's dtype and lse fp32 [B, H, N]; a query without a key gives 0 and -inf.
    Raises ValueError for other dtypes, devices and shapes.
    """
    check_arguments(q, k, v, layout, key_bias, dtypes=DTYPES, device="cpu")
    B, H, N, _ = q.shape
    width = max(q.shape[3], v.shape[3])
    factor, scale = _split_scale(scale, q.dtype)
    q_blocks = _blocks(_widened(q, width) * factor, layout.block_q, layout.q_len)
    k_blocks, v_blocks = (_blocks(_widened(x, width), layout.block_k, layout.k_len) for x in (k, v))
    added, pairs = _added_by_key(layout, key_bias), _added_by_pair(layout)
    out_blocks = torch.zeros_like(q_blocks)
    lse_blocks = torch.full(q_blocks.shape[:2], -torch.inf)
    for call in _calls(q, k, layout, key_bias):
        mask = _gather_mask(added, pairs, call)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_blocks[call.rows][:, None], _gather(k_blocks, call), _gather(v_blocks, call), 0.0, False,
            attn_mask=mask, scale=scale,
        )  # fmt: skip
        empty = _without_key(mask)
        out_blocks[call.rows] = out[:, 0].masked_fill(empty[..., None], 0)
        lse_blocks[call.rows] = lse[:, 0].masked_fill(empty, -torch.inf)
    padding = ~_valid(N, layout.block_q, layout.q_len)
    out = _tokens(out_blocks, B, H, N)[..., : v.shape[3]].masked_fill(padding[:, None], 0)
    lse = _tokens(lse_blocks[..., None], B, H, N)[..., 0].masked_fill(padding, -torch.inf)
    return out.contiguous(), lse.contiguous()


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: BlockLayout,
    scale: float,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward` for q, k, v and key_bias (None where there is none), in their shapes.

    torch's kernel has no gradient through lse and none for its mask, so both ride in channels that are added. It takes
    delta = rowsum(d_out * out): with d_lse, out gains -d_lse (in two parts, since one bf16 is too coarse), d_out gains
    ones and v zeros. And the sum of dS over queries is dK of a channel in which q is one and k is zero.
    Raises ValueError as `forward` does, and for a scale of 0.
    """
    check_arguments(q, k, v, layout, key_bias, dtypes=DTYPES, device="cpu")
    if scale == 0.0:
        raise ValueError("scale is 0.0; expected another number, since the gradients are divided by it")
    (B, H, N, D), V = q.shape, v.shape[3]
    width = max(D + (key_bias is not None), V + 2 * (d_lse is not None))
    wide_q, wide_k, wide_v, wide_out, wide_d_out = (_widened(x, width) for x in (q, k, v, out, d_out.to(q.dtype)))
    factor, scale = _split_scale(scale, q.dtype)
    wide_q *= factor
    if key_bias is not None:
        wide_q[..., D] = 1
    if d_lse is not None:
        minus = -torch.where(lse == -torch.inf, 0, d_lse.float())
        wide_out[..., V] = minus.to(q.dtype)
        wide_out[..., V + 1] = (minus - minus.to(q.dtype).float()).to(q.dtype)
        wide_d_out[..., V : V + 2] = 1
    q_blocks, out_blocks, d_out_blocks = (
        _blocks(x, layout.block_q, layout.q_len) for x in (wide_q, wide_out, wide_d_out)
    )
    k_blocks, v_blocks = (_blocks(x, layout.block_k, layout.k_len) for x in (wide_k, wide_v))
    # exp(s - inf) is 0: what has no key has no gradient.
    finite_lse = torch.where(lse == -torch.inf, torch.inf, lse)
    lse_blocks = _blocks(finite_lse[..., None], layout.block_q, None, fill=torch.inf)[..., 0]
    added, pairs = _added_by_key(layout, key_bias), _added_by_pair(layout)
    dq_blocks = torch.zeros_like(q_blocks)
    dk_blocks, dv_blocks = (torch.zeros(x.shape, dtype=torch.float32) for x in (k_blocks, v_blocks))
    d_bias_blocks = None if key_bias is None or added is None else torch.zeros_like(added)
    for call in _calls(q, k, layout, key_bias):
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out_blocks[call.rows][:, None], q_blocks[call.rows][:, None], _gather(k_blocks, call),
            _gather(v_blocks, call), out_blocks[call.rows][:, None], lse_blocks[call.rows][:, None], 0.0, False,
            attn_mask=_gather_mask(added, pairs, call), scale=scale,
        )  # fmt: skip
        dq_blocks[call.rows] = dq[:, 0]
        for total, part in ((dk_blocks, dk), (dv_blocks, dv)):
            total.index_add_(0, call.keys.flatten(), part.reshape(-1, *total.shape[1:]).float())
        if d_bias_blocks is not None:
            part = dk[..., D].float().reshape(-1, layout.block_k) / scale
            d_bias_blocks.index_add_(0, call.bias.flatten(), part)
    dq = _tokens(dq_blocks, B, H, N)[..., :D] * factor
    dk, dv = (_tokens(x, B, k.shape[1], k.shape[2]).to(q.dtype) for x in (dk_blocks, dv_blocks))
    return dq.contiguous(), dk[..., :D].contiguous(), dv[..., :V].contiguous(), _bias_of(d_bias_blocks, key_bias)


def _calls(q: Tensor, k: Tensor, layout: BlockLayout, key_bias: Tensor | None) -> Iterator[_Call]:
    """Rows grouped by their number of blocks, each group cut so that what it gathers stays small."""
    B, H, G, NK = q.shape[0], q.shape[1], k.shape[1], layout.num_k_blocks
    shape = (B, H, layout.num_q_blocks)
    counts = layout.kv_num.expand(shape).flatten()
    lists = layout.kv_idx.long().expand(*shape, -1).flatten(0, 2)
    masks = None if layout.mask_idx is None else layout.mask_idx.long().expand(*shape, -1).flatten(0, 2)
    batch, head, _ = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    key_head = (batch * G + head // (H // G)).flatten()
    bias_batch, bias_heads = (1, 1) if key_bias is None else key_bias.shape[:2]
    bias_head = (batch % bias_batch * bias_heads + head % bias_heads).flatten()
    partial = torch.zeros_like(counts, dtype=torch.bool) if masks is None else (masks >= 0).any(-1)
    for count, masked in torch.stack([counts, partial.int()], dim=1).unique(dim=0).tolist():
        if count == 0:
            continue
        channels = max(k.shape[3], layout.block_q) if masked else k.shape[3]
        at_once = max(1, GATHERED_ELEMENTS // (count * layout.block_k * channels))
        for rows in torch.nonzero((counts == count) & (partial == bool(masked)))[:, 0].split(at_once):
            kept = lists[rows, :count]
            bits = masks[rows, :count] if masks is not None and masked else None
            yield _Call(rows, key_head[rows, None] * NK + kept, bias_head[rows, None] * NK + kept, bits)


def _split_scale(scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """A factor for q, and the power of two that is left of the scale.

    torch's kernels round the scaled scores differently forward and backward, unless the scale is a power of two: at
    scores of 1000 the gradients are then ten times less exact. In 16 bits the factor would be rounded with q, and does
    not matter: it is 1.
    """
    if dtype != torch.float32 or scale == 0.0:
        return 1.0, scale
    power = 2.0 ** math.frexp(abs(scale))[1]
    return scale / power, power


def _valid(tokens: int, block: int, lengths: Tensor | None) -> Tensor:
    """bool [tokens]: which of them are no padding."""
    if lengths is None:
        return torch.ones(tokens, dtype=torch.bool)
    return (torch.arange(block) < lengths[:, None]).flatten()[:tokens]


def _widened(x: Tensor, width: int) -> Tensor:
    """A copy with zeros added to the last dimension."""
    return F.pad(x, (0, width - x.shape[3])) if x.shape[3] < width else x.clone()


def _blocks(x: Tensor, block: int, lengths: Tensor | None, fill: float = 0.0) -> Tensor:
    """[B, H, N, D] to [B * H * blocks, block, D]; padding becomes `fill`, so that a NaN in it goes nowhere."""
    tokens = x.shape[2]
    x = F.pad(x, (0, 0, 0, -tokens % block), value=fill)
    if lengths is not None:
        x = x.masked_fill(~_valid(x.shape[2], block, lengths)[:, None], fill)
    return x.reshape(-1, block, x.shape[3])


def _tokens(blocks: Tensor, batch: int, heads: int, tokens: int) -> Tensor:
    """The way back from `_blocks`: [B, H, tokens, D]."""
    return blocks.view(batch, heads, -1, blocks.shape[2])[:, :, :tokens]


def _gather(blocks: Tensor, call: _Call) -> Tensor:
    """Kept blocks of each row, [r, 1, c * block, D]."""
    return blocks.index_select(0, call.keys.flatten()).view(len(call.rows), 1, -1, blocks.shape[2])


def _added_by_key(layout: BlockLayout, key_bias: Tensor | None) -> Tensor | None:
    """What is added to a key's scores, fp32 [bias batch * bias heads * NK, block_k]; None where that is nothing."""
    if key_bias is None and layout.k_len is None and layout.num_k % layout.block_k == 0:
        return None
    bias = torch.zeros(1, 1, layout.num_k) if key_bias is None else key_bias
    bias = bias.masked_fill(~_valid(layout.num_k, layout.block_k, layout.k_len), -torch.inf)
    return F.pad(bias, (0, -layout.num_k % layout.block_k), value=-torch.inf).reshape(-1, layout.block_k)


def _added_by_pair(layout: BlockLayout) -> Tensor | None:
    """What is added to the scores of a partly masked block, fp32 [P + 1, block_q, block_k], zeros at the end."""
    if layout.mask_bits is None:
        return None
    kept = F.pad(unpack_bits(layout.mask_bits, layout.block_k), (0, 0, 0, 0, 0, 1), value=True)
    return torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)


def _gather_mask(added: Tensor | None, pairs: Tensor | None, call: _Call) -> Tensor | None:
    """[r, 1, 1, c * block_k], or [r, 1, block_q, c * block_k] where blocks are partly masked."""
    rows = len(call.rows)
    by_key = None if added is None else added.index_select(0, call.bias.flatten()).view(rows, 1, 1, -1)
    if pairs is None or call.masks is None:
        return by_key
    by_pair = pairs[call.masks].transpose(1, 2).flatten(2)[:, None]  # -1 is the row of zeros
    return by_pair if by_key is None else by_pair + by_key


def _without_key(mask: Tensor | None) -> Tensor:
    """bool, broadcasts to [r, block_q]: every key of the query is masked out."""
    return torch.zeros(1, 1, dtype=torch.bool) if mask is None else (mask == -torch.inf).all(-1)[:, 0]


def _bias_of(blocks: Tensor | None, key_bias: Tensor | None) -> Tensor | None:
    if blocks is None or key_bias is None:
        return None
    return blocks.view(*key_bias.shape[:2], -1)[..., : key_bias.shape[2]].contiguous()
