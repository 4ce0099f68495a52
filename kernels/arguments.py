"""How an operation refuses an argument: one sentence that names it, its value and what was expected.

Sentences are made only where something is refused, since these checks stand in front of operations that take less time
than a few formatted strings.
"""

import math
from typing import TypeGuard

import torch
from torch import Tensor


def check(holds: bool, name: str, value: object, expected: object, why: str = "") -> None:
    """Raises ValueError unless `holds`.

    value: what the argument is, or the shape, dtype or device that is wrong with it. expected: the same, or words.
    """
    if not holds:
        raise ValueError(f"{name} is {_described(value)}; expected {_wanted(expected)}{why}.")


def check_kind(name: str, value: object, kind: type) -> None:
    """Refuses what is no `kind`, a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {_one(type(value))}; expected {_one(kind)}.")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; flags are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(name: str, value: object, least: int, what: str = "a whole number") -> None:
    """Refuses what is no whole number, or less than `least`."""
    check(is_whole(value) and value >= least, name, value, f"at least {least}, {what}")


def check_finite(name: str, value: object) -> None:
    """Refuses what is no number, infinities and NaN."""
    holds = isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
    check(holds, name, value, "a finite number")


def check_floating(name: str, x: Tensor, ndim: int, dims: str) -> None:
    """Refuses what is no floating-point tensor of `ndim` dimensions, which `dims` names, as in "[tokens, channels]"."""
    check(isinstance(x, Tensor), name, type(x).__name__, "a tensor")
    check(x.dtype in _FLOATING, name, x.dtype, "a floating-point dtype of 16, 32 or 64 bits")
    check(x.ndim == ndim, name, x.shape, dims)


def check_device(name: str, x: Tensor, device: torch.device, owner: str = "the first argument") -> None:
    """Refuses a tensor that is elsewhere than `owner`."""
    check(x.device == device, name, x.device, device, f", as {owner} is")


_FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _one(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {list(value.shape)}"
    if isinstance(value, torch.Size):
        return f"of shape {list(value)}"
    if isinstance(value, torch.device):
        return f"on {value}"
    return f"of {value}" if isinstance(value, torch.dtype) else repr(value)


def _wanted(expected: object) -> str:
    if isinstance(expected, list) and all(isinstance(name, str) for name in expected):
        return f"one of {', '.join(expected)}"
    return f"shape {list(expected)}" if isinstance(expected, (torch.Size, list)) else str(expected)
