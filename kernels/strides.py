"""Strides as the kernels are given them."""

from torch import Tensor


def broadcast_strides(x: Tensor, num_dims: int) -> tuple[int, ...]:
    """Strides of the first `num_dims` dimensions, in elements; 0 where the size is 1, so that it broadcasts."""
    return tuple(
        stride if size > 1 else 0 for size, stride in zip(x.shape[:num_dims], x.stride()[:num_dims], strict=True)
    )
