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
    if not _are_alike(q, k, v, dtypes, device):
        _check_each(q, k, v, dtypes, device)
        _check_shapes(q, k, v)


def _are_alike(q: Tensor, k: Tensor, v: Tensor, dtypes: Sequence[torch.dtype], device: str) -> bool:
    """Whether q, k and v differ in nothing and are as they should be, as mostly: seen in half the time of a look at
    each, which next to a small attention counts."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return False
    shape, dtype, where = q.shape, q.dtype, q.device
    fits = len(shape) == 4 and shape[1] > 0 and shape[3] > 0 and dtype in dtypes
    alike = k.shape == shape and v.shape == shape and k.dtype == dtype == v.dtype and k.device == where == v.device
    dense = fits and alike and q.stride(3) == k.stride(3) == v.stride(3) == 1
    return dense and (not device or where.type == device)


def _check_each(q: Tensor, k: Tensor, v: Tensor, dtypes: Sequence[torch.dtype], device: str) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise _wrong(name, f"a {type(x).__name__}", "a tensor")
        shape = x.shape
        if len(shape) != 4 or shape[3] < 1:
            raise _wrong(name, f"of shape {list(shape)}", "[batch, heads, tokens, channels], at least one channel")
        if x.dtype not in dtypes:
            raise _wrong(name, f"of {x.dtype}", f"one of {', '.join(map(str, dtypes))}")
        if x.dtype != q.dtype:
            raise _wrong(name, f"of {x.dtype}", f"{q.dtype}, as q is")
        if device and x.device.type != device:
            raise _wrong(name, f"on {x.device}", device)
        if x.device != q.device:
            raise _wrong(name, f"on {x.device}", f"{q.device}, as q is")
        if x.stride(3) != 1 and shape[3] > 1:
            raise _wrong(name, f"of strides {x.stride()}", "a dense last dimension")


def _wrong(name: str, value: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {value}; expected {expected}.")


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, heads, _, channels), (key_batch, key_heads, keys, key_channels) = q.shape, k.shape
    if key_batch != batch or key_channels != channels:
        raise _wrong("k", f"of shape {list(k.shape)}", f"batch {batch} and {channels} channels, as q has")
    if key_heads < 1 or heads % key_heads:
        raise _wrong("k", f"of shape {list(k.shape)}", f"a number of heads that divides q's {heads}")
    if v.shape[:3] != k.shape[:3]:
        raise _wrong("v", f"of shape {list(v.shape)}", f"[{batch}, {key_heads}, {keys}, ...], as k has")


def _check_layout(q: Tensor, k: Tensor, layout: BlockLayout) -> None:
    if not isinstance(layout, BlockLayout):
        raise _wrong("layout", f"a {type(layout).__name__}", "a BlockLayout")
    batch, heads, num_q, _ = q.shape
    own_batch, own_heads, _ = layout.kv_num.shape
    if layout.num_q != num_q:
        raise _wrong("layout.num_q", str(layout.num_q), f"{num_q}, the tokens of q")
    if layout.num_k != k.shape[2]:
        raise _wrong("layout.num_k", str(layout.num_k), f"{k.shape[2]}, the tokens of k")
    if own_batch not in (1, batch):
        raise _wrong("layout", f"one for batch {own_batch}", f"1 or q's {batch}")
    if own_heads not in (1, heads):
        raise _wrong("layout", f"one for heads {own_heads}", f"1 or q's {heads}")
    if layout.kv_num.device != q.device:
        raise _wrong("layout", f"on {layout.device}", f"{q.device}, as q is; move it with layout.to()")


def _check_bias(q: Tensor, k: Tensor, key_bias: Tensor) -> None:
    if not isinstance(key_bias, Tensor):
        raise _wrong("key_bias", f"a {type(key_bias).__name__}", "a tensor, or None")
    (batch, heads), keys = q.shape[:2], k.shape[2]
    shape = list(key_bias.shape)
    if len(shape) != 3 or shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2] != keys:
        raise _wrong("key_bias", f"of shape {shape}", f"[1 or {batch}, 1 or {heads}, {keys}]")
    wanted = torch.float64 if q.dtype == torch.float64 else torch.float32
    if key_bias.dtype != wanted:
        raise _wrong("key_bias", f"of {key_bias.dtype}", str(wanted))
    if key_bias.device != q.device:
        raise _wrong("key_bias", f"on {key_bias.device}", f"{q.device}, as q is")
