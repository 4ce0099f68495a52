"""Mean of each block of tokens, as a torch.library operation: what routing scores, and what a pooled key stands for.

Shape suffixes: B batch, H heads, N tokens, D channels, NB blocks.
"""

from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check_floating, check_kind, check_whole
from mezzotint.kernels.layout_check import check_lengths
from mezzotint.kernels.layout_conversion import valid_tokens, whole_lengths


def pool_blocks(x: Tensor, block: int, lengths: Tensor | None = None) -> Tensor:
    """Mean of each block's valid tokens; 0 where a block has none.

    x [B, H, N, D] -> [B, H, ceil(N / block), D], in float32 (float64 for float64 input). lengths int32 [NB]: the first
    tokens of each block that count; None is all. Padding may hold anything, NaN too. Differentiable in x.

    Raises ValueError naming the argument, its value and what was expected; values of `lengths` are looked at on a CPU
    only.
    """
    check_whole("block", block, 1, "a number of tokens")
    check_floating("x", x, 4, "[batch, heads, tokens, channels]")
    blocks = -(-x.shape[2] // block)
    if lengths is None:
        lengths = whole_lengths(x.shape[2], block, x.device)
    check_kind("lengths", lengths, Tensor)
    if lengths.shape != (blocks,) or lengths.dtype != torch.int32:
        raise ValueError(f"lengths is {lengths.dtype} {list(lengths.shape)}; expected int32 [{blocks}], one a block")
    if lengths.device != x.device:
        raise ValueError(f"lengths is on {lengths.device}; expected {x.device}, where x is")
    return _pool(x, lengths, block)


@torch.library.custom_op("mezzotint::pool_blocks", mutates_args=())
def _pool(x: Tensor, lengths: Tensor, block: int) -> Tensor:
    batch, heads, tokens, channels = x.shape
    if lengths.device.type == "cpu":  # a look at them on a GPU would wait for it
        check_lengths("lengths", lengths, whole_lengths(tokens, block, lengths.device))
    wide = torch.where(valid_tokens(lengths, block)[:tokens, None], x.to(_wide(x)), 0.0)
    padded = torch.nn.functional.pad(wide, (0, 0, 0, len(lengths) * block - tokens))
    total = padded.view(batch, heads, len(lengths), block, channels).sum(-2)
    return total / lengths.clamp(min=1)[:, None].to(total.dtype)


@_pool.register_fake
def _(x: Tensor, lengths: Tensor, block: int) -> Tensor:
    return x.new_empty((*x.shape[:2], lengths.shape[0], x.shape[3]), dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, lengths, ctx.block = inputs
    ctx.tokens, ctx.dtype = x.shape[2], x.dtype
    ctx.save_for_backward(lengths)


def _backward(ctx: Any, d_pooled: Tensor) -> tuple[Tensor, None, None]:
    """Each valid token gets its block's gradient, divided by the block's valid tokens."""
    (lengths,) = ctx.saved_tensors
    share = d_pooled / lengths.clamp(min=1)[:, None].to(d_pooled.dtype)
    spread = share.repeat_interleave(ctx.block, dim=-2)[..., : ctx.tokens, :]
    valid = valid_tokens(lengths, ctx.block)[: ctx.tokens, None]
    return torch.where(valid, spread, 0.0).to(ctx.dtype), None, None


_pool.register_autograd(_backward, setup_context=_setup_context)
