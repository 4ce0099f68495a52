"""Launches of every Triton kernel for the compile report: small tensors of zeros, of the kinds that set its form."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mezzotint.kernels import expert_dispatch_triton, modulation_triton
from mezzotint.kernels import triton_configs as configs
from mezzotint.kernels.compile_report import SHARED_LIMIT_BYTES
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_conversion import whole_lengths
from mezzotint.kernels.triton_launch import backward_arguments, launch_dkdv, launch_dq, launch_forward

ARCHS = tuple(SHARED_LIMIT_BYTES)
"""Architectures that the tables and the limits are made for."""

_WIDEST_BLOCK = 128

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class CompileCase:
    """Kernels that are launched together.

    Args:
        text: what they are launched for.
        head_dim: None where there are no heads.
        dtype: a key of DTYPES.
        archs: architectures that they are compiled for, some of ARCHS.
        run: launches them.

    Raises:
        ValueError: an architecture that has no limits.
    """

    text: str
    head_dim: int | None
    dtype: str
    archs: tuple[int, ...]
    run: Callable[[], None]

    def __post_init__(self) -> None:
        if unknown := [arch for arch in self.archs if arch not in ARCHS]:
            raise ValueError(f"archs has {unknown}; expected some of {list(ARCHS)}")


def attention_case(
    pass_name: str, head_dim: int, dtype: str, block: int, *, features: bool = True, archs: tuple[int, ...] = ARCHS
) -> CompileCase:
    """One pass of attention (see triton_configs.PASSES), with what it needs before.

    block: tokens a block on the side that a program owns, on which its configuration depends; the other has 128.
    """
    text = f"D {head_dim}, blocks of {block}{', all features' if features else ''}"
    run = partial(run_attention, pass_name, head_dim, DTYPES[dtype], block, features)
    return CompileCase(text, head_dim, dtype, archs, run)


def table_cases() -> list[CompileCase]:
    """Every entry of the attention kernels' tables, with all features, at a head dim that takes its whole width."""
    tables = (("bf16", configs.HALF_PRECISION), ("fp32", configs.FULL_PRECISION))
    return [
        attention_case(pass_name, 72 if width == 80 else width, dtype, entry.rows, archs=(arch,))
        for dtype, table in tables
        for (arch, pass_name), by_width in table.items()
        for width, entries in by_width.items()
        for entry in entries
    ]


def operation_cases(channels: Sequence[int], dtypes: Sequence[str]) -> list[CompileCase]:
    """norm_modulate with both norms and expert dispatch with and without bias and gate, forward and backward."""
    cases = []
    for width, dtype in itertools.product(channels, dtypes):
        of = f"{width} channels"
        for norm in ("layer", "rms"):
            run = partial(run_modulation, width, DTYPES[dtype], norm)
            cases.append(CompileCase(f"{of}, {norm} norm", None, dtype, ARCHS, run))
        for every in (False, True):
            run = partial(run_expert_dispatch, width, DTYPES[dtype], every)
            cases.append(CompileCase(f"{of}{', bias and gate' if every else ''}", None, dtype, ARCHS, run))
    return cases


def run_attention(pass_name: str, head_dim: int, dtype: torch.dtype, block: int, features: bool) -> None:
    """The kernels of one pass, with blocks of `block` tokens on the side that a program owns and of 128 on the other.

    features: ragged blocks with lengths, bit masks, a layout for each head, key_bias, a gradient of lse, and two query
    heads to a key head. Without them all blocks are whole and nothing is given but q, k and v.
    """
    tokens = 2 * _WIDEST_BLOCK + 7 * features
    q = torch.zeros(2, 6 if features else 3, tokens, head_dim, dtype=dtype)
    k = torch.zeros(2, 3, tokens, head_dim, dtype=dtype)
    bias = torch.zeros(2, q.shape[1], tokens) if features else None
    blocks = (_WIDEST_BLOCK, block) if pass_name == "dkdv" else (block, _WIDEST_BLOCK)
    layout = _layout(*blocks, tokens, q.shape[1], features)
    if pass_name == "forward":
        launch_forward(q, k, k, layout, 1.0, bias)
        return
    lse = torch.zeros(q.shape[:3])
    arguments = backward_arguments(q, lse if features else None, q, k, k, q, lse, layout, 1.0, bias)
    launch = launch_dq if pass_name == "dq" else launch_dkdv
    launch(q, k, k, layout, bias, arguments)


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
