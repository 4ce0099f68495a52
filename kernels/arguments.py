"""How a fused operation refuses an argument: one sentence that names it, its value and what was expected.

Sentences are made only where something is refused, since these checks stand in front of operations that take less time
than a few formatted strings.
"""

import torch
from torch import Tensor


def check(holds: bool, name: str, value: object, expected: object, why: str = "") -> None:
    """Raises ValueError unless `holds`.

    value: what the argument is, or the shape, dtype or device that is wrong with it. expected: the same, or words.
    """
    if not holds:
        raise ValueError(f"{name} is {_described(value)}; expected {_wanted(expected)}{why}.")


def check_floating(name: str, x: Tensor, ndim: int, dims: str) -> None:
    """Refuses what is no floating-point tensor of `ndim` dimensions, which `dims` names, as in "[tokens, channels]"."""
    check(isinstance(x, Tensor), name, type(x).__name__, "a tensor")
    check(x.is_floating_point(), name, x.dtype, "a floating-point dtype")
    check(x.ndim == ndim, name, x.shape, dims)


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    """Refuses a tensor that is elsewhere than the first argument."""
    check(x.device == device, name, x.device, device, ", as the first argument is")


def _described(value: object) -> str:
    if isinstance(value, torch.Size):
        return f"of shape {list(value)}"
    if isinstance(value, torch.device):
        return f"on {value}"
    return f"of {value}" if isinstance(value, torch.dtype) else repr(value)


def _wanted(expected: object) -> str:
    if isinstance(expected, list) and all(isinstance(name, str) for name in expected):
        return f"one of {', '.join(expected)}"
    return f"shape {list(expected)}" if isinstance(expected, (torch.Size, list)) else str(expected)
