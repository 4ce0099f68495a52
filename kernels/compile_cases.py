"""Launches of every Triton kernel for the compile report: small tensors of zeros, of the kinds that set its form."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mezzotint.kernels import expert_dispatch_triton, modulation_triton
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_conversion import whole_lengths
from mezzotint.kernels.triton_arguments import token_arguments
from mezzotint.kernels.triton_launch import backward_arguments, launch_dkdv, launch_dq, launch_forward

_WIDEST_BLOCK = 128

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class CompileCase:
    """Kernels that are launched together: in words, the head dim (None where there are no heads), a key of DTYPES, and
    what launches them."""

    text: str
    head_dim: int | None
    dtype: str
    run: Callable[[], None]


def attention_cases(
    head_dims: Sequence[int], dtypes: Sequence[str], blocks: Sequence[int] = (128,), features: Sequence[bool] = (True,)
) -> list[CompileCase]:
    """Attention, forward and backward: every combination of what is given.

    blocks: tokens a block on the side that a program owns, on which its configuration depends; the other has 128.
    """
    return [
        CompileCase(
            f"D {width}, blocks of {block}{', all features' if every else ''}", width, dtype,
            partial(run_attention, width, DTYPES[dtype], block, every),
        )
        for width, dtype, block, every in itertools.product(head_dims, dtypes, blocks, features)
    ]  # fmt: skip


def operation_cases(channels: Sequence[int], dtypes: Sequence[str]) -> list[CompileCase]:
    """norm_modulate with both norms and expert dispatch with and without bias and gate, forward and backward."""
    cases = []
    for width, dtype in itertools.product(channels, dtypes):
        of = f"{width} channels"
        for norm in ("layer", "rms"):
            run = partial(run_modulation, width, DTYPES[dtype], norm)
            cases.append(CompileCase(f"{of}, {norm} norm", None, dtype, run))
        for every in (False, True):
            run = partial(run_expert_dispatch, width, DTYPES[dtype], every)
            cases.append(CompileCase(f"{of}{', bias and gate' if every else ''}", None, dtype, run))
    return cases


def run_attention(head_dim: int, dtype: torch.dtype, block: int, features: bool) -> None:
    """The kernels of attention, forward and backward, those by queries with block x 128, that by keys with 128 x block.

    features: ragged blocks with lengths, bit masks, a layout for each head, key_bias, a gradient of lse, and two query
    heads to a key head. Without them all blocks are whole and nothing is given but q, k and v.
    """
    tokens = 2 * _WIDEST_BLOCK + 7 * features
    q = torch.zeros(2, 6 if features else 3, tokens, head_dim, dtype=dtype)
    k = torch.zeros(2, 3, tokens, head_dim, dtype=dtype)
    bias = torch.zeros(2, q.shape[1], tokens) if features else None
    layout = _layout(block, _WIDEST_BLOCK, tokens, q.shape[1], features)
    out, lse = launch_forward(q, k, k, layout, 1.0, bias)
    arguments = backward_arguments(out, lse if features else None, q, k, k, out, lse, layout, 1.0, bias)
    launch_dq(q, k, k, layout, bias, arguments)
    layout = _layout(_WIDEST_BLOCK, block, tokens, q.shape[1], features)
    arguments |= token_arguments(layout)
    launch_dkdv(q, k, k, layout, bias, arguments)


def _layout(block_q: int, block_k: int, tokens: int, heads: int, features: bool) -> BlockLayout:
    sizes: dict[str, Any] = {"block_q": block_q, "block_k": block_k}
    if not features:
        return BlockLayout.full(**sizes, num_q=tokens, num_k=tokens)
    q_len, k_len = (whole_lengths(tokens, block, torch.device("cpu")) for block in sizes.values())
    mask = torch.ones(2, heads, tokens, tokens, dtype=torch.bool).tril()
    return BlockLayout.from_token_mask(mask, **sizes, q_len=q_len, k_len=k_len)


def run_modulation(channels: int, dtype: torch.dtype, norm: str) -> None:
    """The kernels of norm_modulate, forward and backward."""
    x, condition = torch.zeros(3, 19, channels, dtype=dtype), torch.zeros(3, channels, dtype=dtype)
    out, mean, rstd = modulation_triton.forward(x, condition, condition, norm, 1e-6)
    modulation_triton.backward(out, x, condition, mean, rstd, norm)


def run_expert_dispatch(channels: int, dtype: torch.dtype, features: bool) -> None:
    """The kernels of expert dispatch, forward and backward. features: a bias of the product and a gate of the sum."""
    x, weights = torch.zeros(7, channels, dtype=dtype), torch.zeros(3, channels, channels, dtype=dtype)
    bias = torch.zeros(3, channels, dtype=dtype) if features else None
    gate = torch.ones(7, dtype=dtype)
    index, offsets = torch.arange(7), torch.tensor([0, 2, 2, 7])
    out = expert_dispatch_triton.linear(x, weights, bias, offsets)
    expert_dispatch_triton.linear_backward(out, x, weights, offsets, features)
    expert_dispatch_triton.scatter(x, index, gate if features else None, 7)
    expert_dispatch_triton.scatter_backward(x, x, index, gate)
