"""What the Triton kernels of attention take: pointers, and strides by name.

Strides of q, k, v and d_out are counted in units of 16 bytes (triton_tiles.py says why), so what is not aligned to
them is copied first. The kernels are compiled without looking at the values of strides and sizes (SIZES): one compiled
form serves every tensor of a kind, and it is the one that the compile report reads. Shape suffixes: B batch, H heads,
N tokens, D channels.
"""

from typing import Any

from torch import Tensor

from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.strides import broadcast_strides
from mezzotint.kernels.triton_configs import VECTOR_BYTES

_STRIDES = [f"{name}_stride_{dim}" for name in ("q", "k", "v", "d_out", "bias", "num", "idx") for dim in "bhn"]

#: The integer arguments of all the kernels.
SIZES = [*_STRIDES, "num_q", "num_k", "num_heads", "num_tiles"]

#: Rows of a tile are found by 32-bit arithmetic: a tile has at most 128 of them, so this many elements from row to row.
_WIDEST_ROW = 2**31 // 128


def channel_arguments(**tensors: Tensor) -> dict[str, Any]:
    """Tensors [B, H, N, D] by name: NAME_ptr and NAME_stride_b, _h and _n in units of 16 bytes."""
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        x = aligned(x)
        unit = VECTOR_BYTES // x.element_size()
        arguments |= {f"{name}_ptr": x, **_named(name, [stride // unit for stride in broadcast_strides(x, 3)])}
    return arguments


def aligned(x: Tensor) -> Tensor:
    """x [B, H, N, D], or a copy of it where a row does not start at a multiple of 16 bytes.

    Rows that are 2**24 elements apart or more are copied, too.
    """
    unit = VECTOR_BYTES // x.element_size()
    strides = broadcast_strides(x, 3)
    dense = (x.stride(-1) == 1 or x.shape[-1] == 1) and strides[2] < _WIDEST_ROW
    if dense and x.data_ptr() % VECTOR_BYTES == 0 and all(stride % unit == 0 for stride in strides):
        return x
    padded = x.new_empty(*x.shape[:3], -(-x.shape[3] // unit) * unit)
    return padded[..., : x.shape[3]].copy_(x)


def bias_arguments(key_bias: Tensor | None) -> dict[str, Any]:
    """key_bias [B or 1, H or 1, M], or none; its strides in elements."""
    if key_bias is None:
        return {"bias_ptr": None, **_named("bias", (0, 0))}
    key_bias = key_bias.contiguous()
    return {"bias_ptr": key_bias, **_named("bias", broadcast_strides(key_bias, 2))}


def list_arguments(num: Tensor, idx: Tensor, mask_idx: Tensor | None, bits: Tensor | None) -> dict[str, Any]:
    """Counts [Bx, Hx, blocks] and indices [Bx, Hx, blocks, M] of a layout or of its transpose.

    mask_idx, beside the indices, names a row of bits [P, rows, words] or is -1; both are None without masks.
    """
    num, idx = num.contiguous(), idx.contiguous()
    mask_idx, bits = (x if x is None else x.contiguous() for x in (mask_idx, bits))
    return {
        "num_ptr": num, "idx_ptr": idx, "mask_ptr": mask_idx, "bits_ptr": bits,
        **_named("num", broadcast_strides(num, 2)), **_named("idx", broadcast_strides(idx, 3)),
    }  # fmt: skip


def token_arguments(layout: BlockLayout) -> dict[str, Any]:
    """Counts of tokens, and valid ones of each block where the layout has them."""
    q_len, k_len = (x if x is None else x.contiguous() for x in (layout.q_len, layout.k_len))
    return {"num_q": layout.num_q, "num_k": layout.num_k, "q_len_ptr": q_len, "k_len_ptr": k_len}


def _named(name: str, strides: Any) -> dict[str, int]:
    return {f"{name}_stride_{dim}": stride for dim, stride in zip("bhn", strides, strict=False)}
