"""What the operations of expert dispatch are given: lists of assignments, rows, and weights of experts.

Each raises ValueError naming the argument, its value and what was expected. Values of lists are looked at where the
work is done, on a CPU only.
"""

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check, check_device, check_floating


def check_list(name: str, x: Tensor, rows: Tensor) -> None:
    """Refuses what is no int64 list beside `rows`."""
    check(isinstance(x, Tensor), name, type(x).__name__, "a tensor")
    check(x.dtype == torch.int64, name, x.dtype, "torch.int64")
    check(x.ndim == 1, name, x.shape, "one dimension")
    check_device(name, x, rows.device)


def check_offsets(offsets: Tensor, x: Tensor, num_experts: int) -> None:
    """Refuses offsets that are no list of `num_experts` and one more."""
    check_list("offsets", offsets, x)
    check(offsets.shape[0] == num_experts + 1, "offsets", offsets.shape, [num_experts + 1],
          ", the experts and one more")


def check_weights(name: str, weights: Tensor, x: Tensor, channels: int) -> None:
    """Refuses what is no [experts, channels, channels out] in x's dtype, or has no expert."""
    check_floating(name, weights, 3, "[experts, channels, channels out]")
    check(weights.shape[1] == channels, name, weights.shape, "[experts, channels, channels out]",
          f", with {channels} channels")
    check(weights.shape[0] > 0, name, weights.shape, "at least one expert")
    check_device(name, weights, x.device)
    check(weights.dtype == x.dtype, name, weights.dtype, x.dtype, ", as x is")


def check_gate(gate: Tensor, num_assignments: int, x: Tensor, what: str) -> None:
    """Refuses gates that are not floating, or not one for each assignment. what: what there is one of for each."""
    check_floating("gate", gate, 1, "[assignments]")
    check(gate.shape[0] == num_assignments, "gate", gate.shape, [num_assignments], f", one for each {what}")
    check_device("gate", gate, x.device)


def check_tokens(index: Tensor, num_tokens: int) -> None:
    """Refuses a list with a value that is no token."""
    if index.numel() == 0:
        return
    least, most = (int(value) for value in index.aminmax())
    if least < 0 or most >= num_tokens:
        raise index_error(least, most, num_tokens)


def index_error(least: int, most: int, num_tokens: int) -> ValueError:
    """What a list of assignments with such values is refused with."""
    return ValueError(f"index has values from {least} to {most}; expected 0 to {num_tokens - 1}, the tokens.")


def check_ends(offsets: list[int], num_rows: int) -> None:
    """Refuses offsets that do not share all rows out, expert by expert."""
    if offsets[0] != 0 or offsets[-1] != num_rows or offsets != sorted(offsets):
        raise ValueError(f"offsets is {offsets}; expected ascending numbers from 0 to {num_rows}, the rows.")
