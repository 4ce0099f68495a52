"""Parts of an attention put together by their log-sum-exp, as a torch.library operation.

Attention over a union of disjoint key sets is the mean of the attentions over each, weighted by exp(lse): what lets a
sparse part, a pooled part and a dense part run in kernels of their own. Shape suffixes: B batch, H heads, N queries,
V value channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check, check_floating, check_kind

_LSE_DTYPES = (torch.float32, torch.float64)


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge attentions over disjoint sets of keys.

    outs: [B, H, N, V] each, one dtype; lses: fp32 [B, H, N] each, natural log-sum-exp, -inf where a part saw no key.
    Returns the attention over all keys and its lse, by the same dtypes; where no part saw a key 0 and -inf.
    Differentiable in all arguments. Raises ValueError naming the argument that does not fit.
    """
    _check_parts(outs, lses)
    return _merge(list(outs), list(lses))


def _check_parts(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    check_kind("outs", outs, Sequence)
    check_kind("lses", lses, Sequence)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs holds {len(outs)} and lses {len(lses)} tensors; expected as many, at least one.")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        _check_part(f"outs[{i}]", out, outs[0], 4, "[batch, heads, queries, channels]")
        _check_part(f"lses[{i}]", lse, lses[0], 3, "[batch, heads, queries]")
    rows = outs[0].shape[:3]
    check(lses[0].shape == rows, "lses[0]", lses[0].shape, list(rows), ", the queries of outs[0]")
    check(lses[0].dtype in _LSE_DTYPES, "lses[0]", lses[0].dtype, "torch.float32 or torch.float64")
    check(lses[0].device == outs[0].device, "lses[0]", lses[0].device, outs[0].device, ", as outs[0] is")


def _check_part(name: str, x: Tensor, first: Tensor, ndim: int, dims: str) -> None:
    """Refuse what is no tensor of these dimensions, and what is not of the kind that the first of its list is."""
    check_floating(name, x, ndim, dims)
    of_first = ", as the first of them is"
    check(x.shape == first.shape, name, x.shape, first.shape, of_first)
    check(x.dtype == first.dtype, name, x.dtype, first.dtype, of_first)
    check(x.device == first.device, name, x.device, first.device, of_first)


@torch.library.custom_op("mezzotint::merge_attention", mutates_args=())
def _merge(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    lses_PBHN = torch.stack(lses)
    lse = lses_PBHN.logsumexp(dim=0)
    shares = _shares(lses_PBHN, lse)
    merged = sum(share[..., None] * out for share, out in zip(shares, outs, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(outs[0].dtype), lse


@_merge.register_fake
def _(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(outs[0]), torch.empty_like(lses[0])


def _shares(lses_PBHN: Tensor, lse: Tensor) -> Tensor:
    """exp(lse_i - lse); 0 in a row that no part saw, where it would be exp(-inf + inf)."""
    return torch.where(lse == -torch.inf, 0.0, torch.exp(lses_PBHN - lse))


@torch.library.custom_op("mezzotint::merge_attention_backward", mutates_args=())
def _merge_backward(
    d_out: Tensor, d_lse: Tensor | None, merged: Tensor, lse: Tensor, outs: list[Tensor], lses: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """With w_i = exp(lse_i - lse): dO_i = w_i dO, dlse_i = w_i (dO . (O_i - O) + dlse)."""
    wide = lse.dtype
    shares = _shares(torch.stack(lses), lse)
    d_outs = [(share[..., None] * d_out).to(out.dtype) for share, out in zip(shares, outs, strict=True)]
    whole = merged.to(wide)
    d_lses = [
        share * ((d_out.to(wide) * (out.to(wide) - whole)).sum(dim=-1) + (0 if d_lse is None else d_lse))
        for share, out in zip(shares, outs, strict=True)
    ]
    return d_outs, d_lses


@_merge_backward.register_fake
def _(
    d_out: Tensor, d_lse: Tensor | None, merged: Tensor, lse: Tensor, outs: list[Tensor], lses: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.empty_like(o) for o in outs], [torch.empty_like(i) for i in lses]


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], list[Tensor]], output: tuple[Tensor, Tensor]) -> None:
    outs, lses = inputs
    ctx.set_materialize_grads(False)
    ctx.parts = len(outs)
    ctx.save_for_backward(*output, *outs, *lses)


def _backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    merged, lse, *parts = ctx.saved_tensors
    if d_out is None:
        d_out = torch.zeros_like(merged)
    return _merge_backward(d_out, d_lse, merged, lse, parts[: ctx.parts], parts[ctx.parts :])


_merge.register_autograd(_backward, setup_context=_setup_context)
