"""What block-sparse attention takes: each wrong argument is named with its value and what was expected."""

import torch
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""fp64 runs on the reference backend alone."""


def check_arguments(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None) -> None:
    """Raises ValueError naming the argument, its value and what was expected."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check(x.ndim == 4, name, f"of shape {list(x.shape)}", "[batch, heads, tokens, channels]")
        _check(x.dtype in DTYPES, name, f"of {x.dtype}", "bf16, fp16 or fp32")
        _check(x.dtype == q.dtype, name, f"of {x.dtype}", f"{q.dtype}, as q is")
        _check(x.device == q.device, name, f"on {x.device}", f"{q.device}, as q is")
        _check(x.shape[-1] > 0, name, f"of shape {list(x.shape)}", "at least one channel")
        _check(x.stride(-1) == 1 or x.shape[-1] == 1, name, f"of strides {x.stride()}", "a dense last dimension")
    _check_shapes(q, k, v)
    _check_layout(q, k, layout)
    if key_bias is not None:
        _check_bias(q, k, key_bias)


def _check(holds: bool, name: str, value: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; expected {expected}.")


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, heads, _, channels), (_, key_heads, keys, _) = q.shape, k.shape
    shape = f"of shape {list(k.shape)}"
    _check(k.shape[0] == batch, "k", shape, f"batch {batch}, as q has")
    _check(k.shape[3] == channels, "k", shape, f"{channels} channels, as q has")
    _check(key_heads > 0 and heads % key_heads == 0, "k", shape, f"a number of heads that divides q's {heads}")
    _check(v.shape[:3] == k.shape[:3], "v", f"of shape {list(v.shape)}", f"[{batch}, {key_heads}, {keys}, ...], as k")


def _check_layout(q: Tensor, k: Tensor, layout: BlockLayout) -> None:
    _check(isinstance(layout, BlockLayout), "layout", f"a {type(layout).__name__}", "a BlockLayout")
    for name, has, wanted in (("num_q", layout.num_q, q.shape[2]), ("num_k", layout.num_k, k.shape[2])):
        _check(has == wanted, f"layout.{name}", str(has), f"{wanted}, the tokens of {name[-1]}")
    for what, has, wanted in zip(("batch", "heads"), layout.kv_num.shape[:2], q.shape[:2], strict=True):
        _check(has in (1, wanted), "layout", f"one for {what} {has}", f"1 or q's {wanted}")
    _check(layout.device == q.device, "layout", f"on {layout.device}", f"{q.device}, as q is; move it with layout.to()")


def _check_bias(q: Tensor, k: Tensor, key_bias: Tensor) -> None:
    (batch, heads), keys = q.shape[:2], k.shape[2]
    shape = list(key_bias.shape)
    fits = key_bias.ndim == 3 and shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2] == keys
    _check(fits, "key_bias", f"of shape {shape}", f"[1 or {batch}, 1 or {heads}, {keys}]")
    wanted = torch.float64 if q.dtype == torch.float64 else torch.float32
    _check(key_bias.dtype == wanted, "key_bias", f"of {key_bias.dtype}", str(wanted))
    _check(key_bias.device == q.device, "key_bias", f"on {key_bias.device}", f"{q.device}, as q is")
