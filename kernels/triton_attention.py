"""The Triton backend of block-sparse attention: checks, grids, arguments and launches.

Shape suffixes: B batch, H query heads, G key heads, N query tokens, M key tokens, D head channels, V value channels.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels import triton_configs as configs
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.triton_configs import KernelShape, TileConfig

#: Set to 0 to take every configuration from the table, so that two processes give the same bits.
AUTOTUNE_VARIABLE = "MEZZOTINT_TRITON_AUTOTUNE"

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_PROGRAMS = 2**31 - 1
_ROW_TERMS_TILE = 32
_FASTEST: dict[tuple[Any, ...], TileConfig] = {}


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention over the layout's blocks.

    Args:
        q, k, v: [B, H, N, D], [B, G, M, D], [B, G, M, V]; fp16, bf16 or fp32; any strides, the last dimension dense.
        layout: on the same device, its sizes those of q and k.
        scale: what q.k is multiplied by.
        key_bias: fp32 [B or 1, H or 1, M], added to scale * q.k; or None.

    Returns:
        out [B, H, N, V] in q's dtype and lse fp32 [B, H, N] (natural log), dense; rows without a key 0 and -inf.

    Raises:
        ValueError: Triton missing, not a GPU from sm_80 on, dtypes, head dims or strides that the kernels cannot take.
    """
    _check(q, k, v, layout)
    from mezzotint.kernels.triton_forward import attention_forward

    batch, heads, num_q, _ = q.shape
    out = q.new_empty(batch, heads, num_q, v.shape[-1])
    lse = q.new_empty(batch, heads, num_q, dtype=torch.float32)
    shape = _kernel_shape(layout, q, k, v)
    arguments = {
        **_operands(q, k, v, layout, key_bias, shape.unit),
        **_lists("kv", layout.kv_num, layout.kv_idx),
        "out_ptr": out, "lse_ptr": lse, "scale_log2": scale * math.log2(math.e), "num_heads": heads,
    }  # fmt: skip
    _launch("forward", attention_forward, shape, layout, q, batch * heads, arguments)
    return out, lse


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`, without atomics: the same inputs and configurations give the same bits.

    Args:
        d_out: [B, H, N, V] in q's dtype.
        d_lse: fp32 [B, H, N], or None where lse was not used.
        out, lse: what forward returned for the same q, k, v, layout, scale and key_bias.

    Returns:
        dq, dk, dv, dense, in the shapes and dtypes of q, k, v; d_bias fp32 in key_bias's shape, or None with it.

    Raises:
        ValueError: as forward does, and for a d_out of another shape or dtype than out's.
    """
    _check(q, k, v, layout)
    if d_out.shape != out.shape or d_out.dtype != q.dtype:
        found, wanted = f"{list(d_out.shape)} {d_out.dtype}", f"{list(out.shape)} {q.dtype}"
        raise ValueError(f"d_out is {found}; expected {wanted}, as out is")
    d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
    shape = _kernel_shape(layout, q, k, v, d_out)
    lse_log2, delta = _row_terms(d_out, d_lse, out.contiguous(), lse.contiguous(), shape.unit)
    arguments = {
        **_operands(q, k, v, layout, key_bias, shape.unit),
        **_strides("d_out", d_out, shape.unit),
        "d_out_ptr": d_out, "lse_log2_ptr": lse_log2, "delta_ptr": delta,
        "scale": float(scale), "scale_log2": scale * math.log2(math.e),
    }  # fmt: skip
    dq = _backward_dq(arguments, shape, layout)
    dk, dv, d_bias = _backward_dkdv(arguments, shape, layout)
    return dq, dk, dv, d_bias


def _row_terms(d_out: Tensor, d_lse: Tensor | None, out: Tensor, lse: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """The log-sum-exp in base 2 and delta, fp32 [B, H, N] each."""
    from mezzotint.kernels.triton_backward import attention_row_terms

    batch, heads, num_q, width = out.shape
    lse_log2, delta = torch.empty_like(lse), torch.empty_like(lse)
    num_tiles = -(-num_q // _ROW_TERMS_TILE)
    if batch * heads * num_tiles == 0:
        return lse_log2, delta
    _check_programs(batch * heads * num_tiles)
    with torch.cuda.device_of(out):
        attention_row_terms[(batch * heads * num_tiles,)](
            out_ptr=out, d_out_ptr=d_out, lse_ptr=lse, d_lse_ptr=d_lse, lse_log2_ptr=lse_log2, delta_ptr=delta,
            num_heads=heads, num_q=num_q, num_tiles=num_tiles,
            **_strides("d_out", d_out, unit), **_strides("d_lse", d_lse, 1),
            V=width, WIDTH=max(configs.MIN_TILE, 1 << (width - 1).bit_length()), TILE=_ROW_TERMS_TILE, UNIT=unit,
            num_warps=4,
        )  # fmt: skip
    return lse_log2, delta


def _backward_dq(arguments: dict[str, Any], shape: KernelShape, layout: BlockLayout) -> Tensor:
    from mezzotint.kernels.triton_backward import attention_backward_dq

    q = arguments["q_ptr"]
    batch, heads = q.shape[:2]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lists = _lists("kv", layout.kv_num, layout.kv_idx)
    given = {**arguments, **lists, "dq_ptr": dq, "num_heads": heads}
    _launch("dq", attention_backward_dq, shape, layout, q, batch * heads, given)
    return dq


def _backward_dkdv(
    arguments: dict[str, Any], shape: KernelShape, layout: BlockLayout
) -> tuple[Tensor, Tensor, Tensor | None]:
    from mezzotint.kernels.triton_backward import attention_backward_dkdv

    q, k, v, key_bias = (arguments[name] for name in ("q_ptr", "k_ptr", "v_ptr", "bias_ptr"))
    batch, kv_heads, num_k, _ = k.shape
    # The kernel writes valid keys only; those that k_len leaves out keep these zeros.
    make = torch.empty if layout.k_len is None else torch.zeros
    dk = make(k.shape, dtype=k.dtype, device=k.device)
    dv = make(v.shape, dtype=v.dtype, device=v.device)
    d_bias = None
    if key_bias is not None:
        d_bias = make((batch, q.shape[1], num_k), dtype=torch.float32, device=k.device)
    outputs = {"dk_ptr": dk, "dv_ptr": dv, "d_bias_ptr": d_bias}
    given = {**arguments, **_lists("q", *layout.transpose()), **outputs, "num_kv_heads": kv_heads}
    _launch("dkdv", attention_backward_dkdv, shape, layout, q, batch * kv_heads, given)
    if d_bias is not None:
        for dim in (0, 1):
            d_bias = d_bias.sum(dim, keepdim=True) if key_bias.shape[dim] == 1 else d_bias
    return dk, dv, d_bias


def _kernel_shape(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, *strided: Tensor) -> KernelShape:
    return KernelShape(
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        block_q=layout.block_q,
        block_k=layout.block_k,
        group=q.shape[1] // k.shape[1],
        ragged_q=layout.q_len is not None or layout.num_q % layout.block_q != 0,
        ragged_k=layout.k_len is not None or layout.num_k % layout.block_k != 0,
        unit=_stride_unit(q, k, v, *strided),
        upcast=_interpreting() and q.dtype != torch.float32,
    )


def _stride_unit(*tensors: Tensor) -> int:
    """Elements in 16 bytes where every stride is a multiple of that, otherwise 1."""
    unit = 16 // tensors[0].element_size()
    strides = [s for x in tensors for s, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    return unit if all(stride % unit == 0 for stride in strides) else 1


def _strides(name: str, x: Tensor | None, unit: int) -> dict[str, int]:
    """Strides of the first three dimensions in units; 0 where the size is 1, so that it broadcasts."""
    values = [0, 0, 0]
    if x is not None:
        values = [s // unit if size > 1 else 0 for s, size in zip(x.stride()[:3], x.shape[:3], strict=True)]
    return {f"{name}_stride_{dim}": value for dim, value in zip("bhn", values, strict=True)}


def _lists(name: str, num: Tensor, idx: Tensor) -> dict[str, Any]:
    """A layout's lists, or their transpose, as the kernels take them."""
    num, idx = num.contiguous(), idx.contiguous()
    counts, indices = _strides("num", num, 1), _strides("idx", idx, 1)
    del counts["num_stride_n"]
    return {f"{name}_num_ptr": num, f"{name}_idx_ptr": idx, **counts, **indices}


def _operands(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None, unit: int
) -> dict[str, Any]:
    """What all three passes over blocks read."""
    return {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": key_bias, "q_len_ptr": layout.q_len, "k_len_ptr": layout.k_len,
        "num_q": layout.num_q, "num_k": layout.num_k,
        **_strides("q", q, unit), **_strides("k", k, unit), **_strides("v", v, unit), **_strides("bias", key_bias, 1),
    }  # fmt: skip


def _launch(
    pass_name: str,
    kernel: Any,
    shape: KernelShape,
    layout: BlockLayout,
    q: Tensor,
    heads: int,
    arguments: dict[str, Any],
) -> None:
    """Run one pass with its configuration: programs head by head, one a tile. heads counts the batch too."""
    import triton

    def run(config: TileConfig) -> None:
        num_tiles = layout.num_q_blocks * (layout.block_q // config.tile_q)
        if pass_name == "dkdv":
            num_tiles = layout.num_k_blocks * (layout.block_k // config.tile_k)
        _check_programs(heads * num_tiles)
        if heads * num_tiles > 0:
            kernel[(heads * num_tiles,)](
                **arguments, num_tiles=num_tiles, **shape.constants(config),
                num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
            )  # fmt: skip

    with torch.cuda.device_of(q):
        try:
            run(_config(pass_name, shape, q, arguments["bias_ptr"] is not None, run))
        except triton.runtime.errors.OutOfResources as error:
            what = f"head dim is {shape.head_dim} and value dim {shape.value_dim}"
            raise ValueError(f"{what}; expected ones whose tiles fit the device ({pass_name}: {error})") from error


def _config(
    pass_name: str, shape: KernelShape, q: Tensor, biased: bool, run: Callable[[TileConfig], None]
) -> TileConfig:
    """The table's entry, or on a GPU the fastest of the candidates, timed at the first call of its kind."""
    if _interpreting():
        return configs.table_config(pass_name, 90, q.element_size(), shape)
    arch = configs.table_arch(torch.cuda.get_device_capability(q.device))
    if not _may_time():
        return configs.table_config(pass_name, arch, q.element_size(), shape)
    key = (pass_name, torch.cuda.get_device_name(q.device), q.dtype, shape, biased)
    if key not in _FASTEST:
        choices = configs.candidates(pass_name, arch, q.element_size(), shape)
        _FASTEST[key] = min(choices, key=lambda config: _time_ms(run, config))
    return _FASTEST[key]


def _may_time() -> bool:
    """Whether autotuning may run: not when switched off, nor under deterministic algorithms, nor in a graph capture."""
    wanted = os.environ.get(AUTOTUNE_VARIABLE, "1") != "0"
    return wanted and not torch.are_deterministic_algorithms_enabled() and not torch.cuda.is_current_stream_capturing()


def _time_ms(run: Callable[[TileConfig], None], config: TileConfig) -> float:
    """Median time of a pass in milliseconds; infinite where the device lacks the shared memory or registers."""
    import triton

    try:
        return triton.testing.do_bench(lambda: run(config), warmup=10, rep=40, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return math.inf


def _interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 at import), on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _check_programs(count: int) -> None:
    if count > _MAX_PROGRAMS:
        raise ValueError(f"the layout and heads make {count} tiles; expected at most {_MAX_PROGRAMS} in one launch")


def _check(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout) -> None:
    """Refuse what the kernels cannot do, and sizes by which they would read outside the tensors."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the Triton kernels need the package 'triton', which is not installed; choose another backend")
    if not q.is_cuda and not _interpreting():
        raise ValueError(f"q is on {q.device}; expected a CUDA device for the Triton kernels")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in _DTYPES or x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype}; expected float16, bfloat16 or float32, the same for q, k and v")
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(f"{name} has stride {x.stride(-1)} in its last dimension; expected 1")
        configs.split_channels(x.shape[-1])
    (batch, heads, num_q, width), (kv_heads, num_k) = q.shape, k.shape[1:3]
    if k.shape != (batch, kv_heads, num_k, width) or v.shape[:3] != k.shape[:3] or heads % kv_heads:
        found = f"k is {list(k.shape)} and v {list(v.shape)}"
        raise ValueError(f"{found}; expected heads, tokens and channels that fit q, which is {list(q.shape)}")
    if (layout.num_q, layout.num_k, layout.device) != (num_q, num_k, q.device):
        raise ValueError(f"layout is {layout}; expected {num_q} x {num_k} tokens on {q.device}, as q and k are")
