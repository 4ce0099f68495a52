"""Launches of the Triton attention kernels: outputs, arguments, grids. What may be launched is checked before.

Shape suffixes: B batch, H query heads, G key heads, N query tokens, M key tokens, D head channels, V value channels.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels import triton_configs as configs
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.triton_arguments import (
    aligned,
    bias_arguments,
    channel_arguments,
    list_arguments,
    token_arguments,
)
from mezzotint.kernels.triton_configs import KernelShape, TileConfig
from mezzotint.kernels.triton_tuning import interpreting, pick_config

_MAX_PROGRAMS = 2**31 - 1
_ROW_TERMS_TILE = 32


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """out [B, H, N, V] in q's dtype and lse fp32 [B, H, N]; triton_attention.forward says of what."""
    from mezzotint.kernels.triton_forward import attention_forward

    batch, heads, num_q, _ = q.shape
    out = q.new_empty(batch, heads, num_q, v.shape[-1])
    lse = q.new_empty(batch, heads, num_q, dtype=torch.float32)
    shape = _kernel_shape(layout, q, k, v, key_bias)
    arguments = {
        **_inputs(q, k, v, layout, key_bias), **_lists(layout), "out_ptr": out, "lse_ptr": lse,
        "scale_log2": scale * math.log2(math.e),
    }  # fmt: skip
    _launch("forward", attention_forward, shape, layout, arguments)
    return out, lse


def backward_arguments(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: BlockLayout,
    scale: float,
    key_bias: Tensor | None,
) -> dict[str, Any]:
    """What `launch_dq` and `launch_dkdv` both read, given what triton_attention.backward is; computes the row terms."""
    d_out = aligned(d_out)
    lse_log2, delta = _row_terms(d_out, d_lse, out.contiguous(), lse.contiguous())
    return {
        **_inputs(q, k, v, layout, key_bias), **channel_arguments(d_out=d_out), "lse_log2_ptr": lse_log2,
        "delta_ptr": delta, "scale": float(scale), "scale_log2": scale * math.log2(math.e),
    }  # fmt: skip


def _row_terms(d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp in base 2 and delta, fp32 [B, H, N] each."""
    from mezzotint.kernels.triton_backward import attention_row_terms

    batch, heads, num_q, width = out.shape
    lse_log2, delta = torch.empty_like(lse), torch.empty_like(lse)
    num_tiles = -(-num_q // _ROW_TERMS_TILE)
    arguments = {
        "out_ptr": out, "lse_ptr": lse, "d_lse_ptr": None if d_lse is None else d_lse.contiguous(),
        "lse_log2_ptr": lse_log2, "delta_ptr": delta, **channel_arguments(d_out=d_out), "num_q": num_q,
        "num_heads": heads, "num_tiles": num_tiles, "V": width, "UNIT": configs.VECTOR_BYTES // out.element_size(),
        "WIDTH": max(configs.MIN_TILE, 1 << (width - 1).bit_length()), "TILE": _ROW_TERMS_TILE,
    }  # fmt: skip
    _run(attention_row_terms, batch * heads * num_tiles, arguments, num_warps=4)
    return lse_log2, delta


def launch_dq(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None, arguments: dict[str, Any]
) -> Tensor:
    """dq [B, H, N, D], from `backward_arguments`."""
    from mezzotint.kernels.triton_backward import attention_backward_dq

    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    shape = _kernel_shape(layout, q, k, v, key_bias)
    _launch("dq", attention_backward_dq, shape, layout, {**arguments, **_lists(layout), "dq_ptr": dq})
    return dq


def launch_dkdv(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dk, dv and, with a key_bias, its gradient, from `backward_arguments`.

    Each query head has a dk and dv of its own; where heads share their keys these are fp32 and added up in their order.
    """
    from mezzotint.kernels.triton_backward import attention_backward_dkdv

    (batch, heads), (_, kv_heads, num_k, width), value_width = q.shape[:2], k.shape, v.shape[-1]
    # The kernel writes valid keys only; those that k_len leaves out keep these zeros.
    make = torch.empty if layout.k_len is None else torch.zeros
    dtype = q.dtype if heads == kv_heads else torch.float32
    dk, dv = (make((batch, heads, num_k, size), dtype=dtype, device=q.device) for size in (width, value_width))
    d_bias = None if key_bias is None else make((batch, heads, num_k), dtype=torch.float32, device=q.device)
    lists = list_arguments(*layout.transpose(), layout.transpose_mask_idx(), _bits_by_key(layout))
    outputs = {"dk_ptr": dk, "dv_ptr": dv, "d_bias_ptr": d_bias}
    shape = _kernel_shape(layout, q, k, v, key_bias)
    _launch("dkdv", attention_backward_dkdv, shape, layout, {**arguments, **lists, **outputs})
    if heads != kv_heads:
        dk, dv = (x.unflatten(1, (kv_heads, -1)).sum(2).to(q.dtype) for x in (dk, dv))
    return dk, dv, None if key_bias is None or d_bias is None else d_bias.sum_to_size(key_bias.shape)


def _bits_by_key(layout: BlockLayout) -> Tensor | None:
    """The layout's bit masks with a row for each key, int32 [P, block_k, ceil(block_q / 32)]."""
    from mezzotint.kernels.triton_backward import transpose_bits

    bits = layout.mask_bits
    if bits is None:
        return None
    by_key = bits.new_empty(len(bits), layout.block_k, -(-layout.block_q // 32))
    sizes = {"BLOCK_Q": layout.block_q, "BLOCK_K": layout.block_k}
    arguments = {"bits_ptr": bits.contiguous(), "out_ptr": by_key, **sizes}
    _run(transpose_bits, len(bits) * bits.shape[2], arguments, num_warps=1)
    return by_key


def _kernel_shape(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> KernelShape:
    return KernelShape(
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        block_q=layout.block_q,
        block_k=layout.block_k,
        itemsize=q.element_size(),
        group=q.shape[1] // k.shape[1],
        ragged_q=layout.q_len is not None or layout.num_q % layout.block_q != 0,
        ragged_k=layout.k_len is not None or layout.num_k % layout.block_k != 0,
        biased=key_bias is not None,
        masked=layout.mask_bits is not None,
        upcast=interpreting() and q.dtype != torch.float32,
    )


def _inputs(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None) -> dict[str, Any]:
    """What all three passes over blocks read."""
    tokens = token_arguments(layout)
    return {**channel_arguments(q=q, k=k, v=v), **bias_arguments(key_bias), **tokens, "num_heads": q.shape[1]}


def _lists(layout: BlockLayout) -> dict[str, Any]:
    return list_arguments(layout.kv_num, layout.kv_idx, layout.mask_idx, layout.mask_bits)


def _launch(pass_name: str, kernel: Any, shape: KernelShape, layout: BlockLayout, arguments: dict[str, Any]) -> None:
    """Run one pass with its configuration: programs head by head, one a tile of queries, or of keys for dkdv."""
    import triton

    q = arguments["q_ptr"]

    def run(config: TileConfig) -> Any:
        blocks = layout.num_k_blocks if pass_name == "dkdv" else layout.num_q_blocks
        num_tiles = blocks * (shape.blocks(pass_name)[0] // config.rows)
        given = {**arguments, "num_tiles": num_tiles, **shape.constants(pass_name, config)}
        return _run(kernel, q.shape[0] * q.shape[1] * num_tiles, given, config.num_warps, config.num_stages)

    try:
        run(pick_config(pass_name, shape, q, run))
    except triton.runtime.errors.OutOfResources as error:
        what = f"head dim is {shape.head_dim} and value dim {shape.value_dim}"
        raise ValueError(f"{what}; expected ones whose tiles fit the device ({pass_name}: {error})") from error


def _run(kernel: Any, programs: int, arguments: dict[str, Any], num_warps: int, num_stages: int = 1) -> Any:
    """Launch a kernel on the current device; returns what it was compiled to, None where nothing is to do."""
    if programs > _MAX_PROGRAMS:
        raise ValueError(f"the layout and heads make {programs} tiles; expected at most {_MAX_PROGRAMS} in one launch")
    if programs == 0:
        return None
    return kernel[(programs,)](**arguments, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
