"""What block-sparse attention takes: each wrong argument is named with its value and what was expected.

The public operation checks, and each CPU backend once more, since C code reads what it is told to read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""fp64 runs on the reference backend alone."""


def check_arguments(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None,
    *, dtypes: Sequence[torch.dtype] = DTYPES, device: str = "",
) -> None:  # fmt: skip
    """Raises ValueError naming the argument, its value and what was expected.

    `dtypes` and `device` are what a backend can take; any device where that is empty.
    """
    check_tensors(q, k, v, dtypes, device)
    _check_layout(q, k, layout)
    if key_bias is not None:
        _check_bias(q, k, key_bias)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, dtypes: Sequence[torch.dtype] = DTYPES, device: str = "") -> None:
    """The part of `check_arguments` that needs no layout."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or x.shape[-1] < 1:
            raise _wrong(name, f"of shape {list(x.shape)}", "[batch, heads, tokens, channels], at least one channel")
        if x.dtype not in dtypes:
            raise _wrong(name, f"of {x.dtype}", f"one of {', '.join(map(str, dtypes))}")
        if x.dtype != q.dtype:
            raise _wrong(name, f"of {x.dtype}", f"{q.dtype}, as q is")
        if device and x.device.type != device:
            raise _wrong(name, f"on {x.device}", device)
        if x.device != q.device:
            raise _wrong(name, f"on {x.device}", f"{q.device}, as q is")
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise _wrong(name, f"of strides {x.stride()}", "a dense last dimension")
    _check_shapes(q, k, v)


def _wrong(name: str, value: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {value}; expected {expected}.")


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, heads, _, channels), (_, key_heads, keys, _) = q.shape, k.shape
    if k.shape[0] != batch or k.shape[3] != channels:
        raise _wrong("k", f"of shape {list(k.shape)}", f"batch {batch} and {channels} channels, as q has")
    if key_heads < 1 or heads % key_heads:
        raise _wrong("k", f"of shape {list(k.shape)}", f"a number of heads that divides q's {heads}")
    if v.shape[:3] != k.shape[:3]:
        raise _wrong("v", f"of shape {list(v.shape)}", f"[{batch}, {key_heads}, {keys}, ...], as k has")


def _check_layout(q: Tensor, k: Tensor, layout: BlockLayout) -> None:
    if not isinstance(layout, BlockLayout):
        raise _wrong("layout", f"a {type(layout).__name__}", "a BlockLayout")
    for name, has, wanted in (("num_q", layout.num_q, q.shape[2]), ("num_k", layout.num_k, k.shape[2])):
        if has != wanted:
            raise _wrong(f"layout.{name}", str(has), f"{wanted}, the tokens of {name[-1]}")
    for what, has, wanted in zip(("batch", "heads"), layout.kv_num.shape[:2], q.shape[:2], strict=True):
        if has not in (1, wanted):
            raise _wrong("layout", f"one for {what} {has}", f"1 or q's {wanted}")
    if layout.device != q.device:
        raise _wrong("layout", f"on {layout.device}", f"{q.device}, as q is; move it with layout.to()")


def _check_bias(q: Tensor, k: Tensor, key_bias: Tensor) -> None:
    (batch, heads), keys = q.shape[:2], k.shape[2]
    shape = list(key_bias.shape)
    if len(shape) != 3 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2] != keys:
        raise _wrong("key_bias", f"of shape {shape}", f"[1 or {batch}, 1 or {heads}, {keys}]")
    wanted = torch.float64 if q.dtype == torch.float64 else torch.float32
    if key_bias.dtype != wanted:
        raise _wrong("key_bias", f"of {key_bias.dtype}", str(wanted))
    if key_bias.device != q.device:
        raise _wrong("key_bias", f"on {key_bias.device}", f"{q.device}, as q is")
