"""Classifier-free guidance (arXiv 2207.12598)."""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional); scale 1 is the conditional prediction alone."""
    return unconditional + scale * (conditional - unconditional)
