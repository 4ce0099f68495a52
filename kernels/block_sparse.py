"""Block-sparse attention: the public operation, as torch sees it.

A torch.library operation with fake and autograd registrations, so that torch.compile traces it and the FLOP counter
counts what is kept. Which backend runs is decided by `chosen_backend` before anything is computed; a case that it
cannot do raises. Shape suffixes: B batch, H query heads, G key heads, N query tokens, M key tokens, D head channels,
V value channels.
"""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mezzotint.kernels.arguments import check_finite
from mezzotint.kernels.attention_backends import backend_module, chosen_backend
from mezzotint.kernels.attention_check import check_arguments
from mezzotint.kernels.direct_call import is_watched, may_call_directly
from mezzotint.kernels.layout import BlockLayout

_ran = threading.local()


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, *, scale: float | None = None,
    key_bias: Tensor | None = None, return_lse: bool = False, backend: str = "auto", deterministic: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + key_bias) v over the token pairs that `layout` keeps.

    q: [B, H, N, D]; k: [B, G, M, D]; v: [B, G, M, V]; any strides with the last dimension dense, one dtype (bf16,
        fp16 or fp32) and device. G divides H: query head h reads key head h // (H / G).
    layout: which blocks of keys each block of queries sees; its Bx is 1 or B, its Hx 1 or H. Where it has an order
        (perm), the tokens come in that order.
    scale: None is D ** -0.5.
    key_bias: fp32 [B or 1, H or 1, M], added to the scores; log(n) makes one key stand for n equal ones.
    return_lse: also return log-sum-exp of each query's scores, fp32 [B, H, N], natural logarithm; gradients flow
        through it.
    backend: "auto", or one of `attention_backends.BACKENDS` by name.
    deterministic: every backend gives the same bits for the same input; False permits one that does not.

    Returns [B, H, N, V] in q's dtype. A query that sees no key gives 0 and lse -inf, with zero gradients.
    Raises ValueError naming the argument, its value and what was expected.
    """
    check_arguments(q, k, v, layout, key_bias)
    name = chosen_backend(q, k, v, layout, key_bias=key_bias, return_lse=return_lse, backend=backend)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    else:
        check_finite("scale", scale)
    if name == "sdpa" and not return_lse and not is_watched():
        _ran.name = name  # torch's own operation, whose autograd costs less than that of an operation in Python
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    if may_call_directly(q, k, v, key_bias):
        _ran.name = name
        out, lse = backend_module(name).forward(q, k, v, layout, scale, key_bias)
        return (out, lse) if return_lse else out
    by_keys: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Kept by the layout, for all the layers and steps that share it.
        by_keys = (*layout.transpose(), layout.transpose_mask_idx())
    out, lse = _attention(
        q, k, v, key_bias, layout.kv_num, layout.kv_idx, layout.q_len, layout.k_len, layout.mask_idx, layout.mask_bits,
        *by_keys, layout.block_q, layout.block_k, scale, name,
    )
    return (out, lse) if return_lse else out


def last_backend() -> str | None:
    """Name of the backend that ran the newest forward or backward pass of this thread; None before any."""
    return getattr(_ran, "name", None)


@torch.library.custom_op("mezzotint::block_sparse_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, kv_num: Tensor, kv_idx: Tensor, q_len: Tensor | None,
    k_len: Tensor | None, mask_idx: Tensor | None, mask_bits: Tensor | None, q_num: Tensor | None,
    q_idx: Tensor | None, q_mask_idx: Tensor | None, block_q: int, block_k: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:
    lists = (kv_num, kv_idx, q_len, k_len, mask_idx, mask_bits, q_num, q_idx, q_mask_idx)
    layout = _layout(q, k, *lists, block_q, block_k)
    _ran.name = backend
    return backend_module(backend).forward(q, k, v, layout, scale, key_bias)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=_wide(q))


@torch.library.custom_op("mezzotint::block_sparse_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    key_bias: Tensor | None, kv_num: Tensor, kv_idx: Tensor, q_len: Tensor | None, k_len: Tensor | None,
    mask_idx: Tensor | None, mask_bits: Tensor | None, q_num: Tensor | None, q_idx: Tensor | None,
    q_mask_idx: Tensor | None, block_q: int, block_k: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lists = (kv_num, kv_idx, q_len, k_len, mask_idx, mask_bits, q_num, q_idx, q_mask_idx)
    layout = _layout(q, k, *lists, block_q, block_k)
    _ran.name = backend
    dq, dk, dv, d_bias = backend_module(backend).backward(d_out, d_lse, q, k, v, out, lse, layout, scale, key_bias)
    # An operation cannot return None among its tensors.
    return dq, dk, dv, d_bias if d_bias is not None else q.new_empty(0, dtype=torch.float32)


@_attention_backward.register_fake
def _(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    key_bias: Tensor | None, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = _like(key_bias) if key_bias is not None else q.new_empty(0, dtype=torch.float32)
    return _like(q), _like(k), _like(v), d_bias


def _wide(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _layout(
    q: Tensor, k: Tensor, kv_num: Tensor, kv_idx: Tensor, q_len: Tensor | None, k_len: Tensor | None,
    mask_idx: Tensor | None, mask_bits: Tensor | None, q_num: Tensor | None, q_idx: Tensor | None,
    q_mask_idx: Tensor | None, block_q: int, block_k: int,
) -> BlockLayout:
    layout = BlockLayout(
        block_q=block_q, block_k=block_k, num_q=q.shape[2], num_k=k.shape[2], kv_num=kv_num, kv_idx=kv_idx,
        q_len=q_len, k_len=k_len, mask_idx=mask_idx, mask_bits=mask_bits, validate=False,
    )
    return layout if q_num is None or q_idx is None else layout.keep_transpose(q_num, q_idx, q_mask_idx)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.rest = inputs[:-4], inputs[-4:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, key_bias, *lists = ctx.saved_tensors
    if d_out is None:
        d_out = torch.zeros_like(out)
    dq, dk, dv, d_bias = _attention_backward(d_out, d_lse, out, lse, q, k, v, key_bias, *lists, *ctx.rest)
    return dq, dk, dv, None if key_bias is None else d_bias, *[None] * (len(lists) + len(ctx.rest))


_attention.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.mezzotint.block_sparse_attention, get_raw=True)
def _forward_flops(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, *layout: Any, **_: Any) -> int:
    """2 (D + V) for each token pair that is kept; all pairs where the lists hold no values (fake tensors)."""
    return 2 * (q.shape[-1] + v.shape[-1]) * _kept_pairs(q, k, *layout[:-2])


@register_flop_formula(torch.ops.mezzotint.block_sparse_attention_backward, get_raw=True)
def _backward_flops(
    d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    key_bias: Tensor | None, *layout: Any, **_: Any,
) -> int:
    """The scores, dQ and dK take D each, dP and dV take V: five products against the forward's two."""
    return 2 * (3 * q.shape[-1] + 2 * v.shape[-1]) * _kept_pairs(q, k, *layout[:-2])


def _kept_pairs(q: Tensor, k: Tensor, kv_num: Tensor, *rest: Any) -> int:
    if isinstance(kv_num, torch._subclasses.FakeTensor):
        return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    copies = (q.shape[0] // kv_num.shape[0]) * (q.shape[1] // kv_num.shape[1])
    return copies * _layout(q, k, kv_num, *rest).kept_pairs()
