"""Classifier-free guidance (arXiv 2207.12598)."""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor | None = None, *, scale: float) -> Tensor:
    """unconditional + scale * (conditional - unconditional); without an unconditional one the conditional alone."""
    return conditional if unconditional is None else unconditional + scale * (conditional - unconditional)
