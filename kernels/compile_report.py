"""What the Triton kernels compile to, read without a GPU: registers, spills, shared memory, matrix instructions.

Triton compiles for a named architecture on any Linux machine; the cubin is read with the cuobjdump and the PTX with the
counts below. Pointers carry tt.divisibility 16, as a launch with aligned tensors gives them, and strides come in units
of 16 bytes (triton_tiles.py); without that no load is vectorised and the figures mean nothing.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.kernels.triton_configs import PASSES, KernelShape, TileConfig, table_config

#: Bytes of shared memory that one program may ask for, by architecture (CUDA C programming guide, technical
#: specifications): Triton compiles past it without a word.
SHARED_LIMIT_BYTES = {80: 166_912, 90: 232_448}

#: Least useful / issued matrix instructions, as a share of the best that the split head dim allows at 72 (72 / 80).
USEFUL_LIMIT = 0.9

_SHARED_PER_SM_BYTES = {80: 167_936, 90: 233_472}
_RESERVED_PER_CTA_BYTES = 1024
_REGISTERS_PER_SM = 65_536
_WARPS_PER_SM = 64
_CTAS_PER_SM = 32
_DTYPE_NAMES = {"bf16": 2, "fp16": 2, "fp32": 4}
_FP32_POINTERS = ("lse_ptr", "bias_ptr", "lse_log2_ptr", "delta_ptr", "d_bias_ptr")
_MMA = re.compile(r"(wgmma\.mma_async\.sync|mma\.sync)\.aligned[.\w]*?\.m(\d+)n(\d+)k(\d+)")
_INT32_POINTERS = ("kv_num_ptr", "kv_idx_ptr", "q_num_ptr", "q_idx_ptr", "q_len_ptr", "k_len_ptr")
_OPTIONAL_POINTERS = ("bias_ptr", "d_bias_ptr", "q_len_ptr", "k_len_ptr")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRow:
    """One kernel in one configuration for one architecture.

    Args:
        kernel: "forward", "dq" or "dkdv".
        arch: 80 or 90.
        head_dim: channels of q, k and v.
        dtype: "bf16", "fp16" or "fp32".
        block: tokens a block of the layout, on both sides.
        config: tiles, warps and stages.
        registers: a thread.
        stack_bytes: a thread; anything above 0 is spilled registers.
        shared_bytes: dynamic shared memory a program.
        wgmma, mma_sync, cp_async: instructions in the PTX text.
        useful_over_issued: multiplications that attention needs over those that the matrix instructions of one turn of
            the loop make; None where none are used (fp32).
        ctas_per_sm: programs that registers, shared memory and warps let run together on one SM.
    """

    kernel: str
    arch: int
    head_dim: int
    dtype: str
    block: int
    config: TileConfig
    registers: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int
    mma_sync: int
    cp_async: int
    useful_over_issued: float | None
    ctas_per_sm: int


def compile_report(
    *,
    kernels: Sequence[str] = PASSES,
    archs: Sequence[int] = (90, 80),
    head_dims: Sequence[int] = (64, 72, 128),
    dtypes: Sequence[str] = ("bf16",),
    blocks: Sequence[int] = (128,),
) -> list[CompileRow]:
    """Compile the table's configurations and read what came out, about a second each.

    Raises ValueError where Triton is not installed or its interpreter is switched on, and for names that it lacks.
    """
    _check_names(kernels, archs, dtypes)
    return [
        compile_row(kernel, arch, dtype, KernelShape(head_dim=width, value_dim=width, block_q=block, block_k=block))
        for kernel in kernels
        for arch in archs
        for width in head_dims
        for dtype in dtypes
        for block in blocks
    ]


def compile_row(
    kernel: str, arch: int, dtype: str, shape: KernelShape, config: TileConfig | None = None
) -> CompileRow:
    """One row; `config` None takes the table's. shape.block_q and block_k must be equal, as must the head dims."""
    config = config or table_config(kernel, arch, _DTYPE_NAMES[dtype], shape)
    compiled = _compile(kernel, arch, dtype, shape, config)
    registers, stack = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return CompileRow(
        kernel=kernel,
        arch=arch,
        head_dim=shape.head_dim,
        dtype=dtype,
        block=shape.block_q,
        config=config,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=compiled.metadata.shared,
        wgmma=len(re.findall(r"wgmma\.mma_async\.sync", ptx)),
        mma_sync=len(re.findall(r"mma\.sync\.aligned", ptx)),
        cp_async=len(re.findall(r"cp\.async\.c[ag]\.shared", ptx)),
        useful_over_issued=_useful_over_issued(kernel, shape.head_dim, config, ptx),
        ctas_per_sm=_ctas_per_sm(arch, registers, compiled.metadata.shared, config.num_warps),
    )


def limits(rows: Iterable[CompileRow]) -> list[str]:
    """One sentence for each limit that a row breaks: spills, shared memory, useful / issued, CTAs an SM."""
    return [sentence for row in rows for sentence in _broken(row)]


def _broken(row: CompileRow) -> list[str]:
    tiles = f"{row.config.tile_q} x {row.config.tile_k}, {row.config.num_warps} warps, {row.config.num_stages} stages"
    name = f"{row.kernel} sm_{row.arch} {row.dtype} D {row.head_dim} ({tiles})"
    broken = []
    if row.stack_bytes > 0:
        broken.append(f"{name} spills {row.stack_bytes} bytes a thread; expected none")
    if row.shared_bytes > SHARED_LIMIT_BYTES[row.arch]:
        limit = SHARED_LIMIT_BYTES[row.arch]
        broken.append(f"{name} takes {row.shared_bytes} bytes of shared memory; expected at most {limit}")
    if row.head_dim == 72 and row.useful_over_issued is not None and row.useful_over_issued < USEFUL_LIMIT:
        broken.append(f"{name} makes use of {row.useful_over_issued:.3f} of its MMA; expected at least {USEFUL_LIMIT}")
    if (row.kernel, row.arch) == ("forward", 90) and row.head_dim <= 72 and row.dtype != "fp32" and row.ctas_per_sm < 2:
        broken.append(f"{name} leaves room for {row.ctas_per_sm} CTA an SM; expected at least 2")
    return broken


def _check_names(kernels: Sequence[str], archs: Sequence[int], dtypes: Sequence[str]) -> None:
    known: tuple[tuple[str, Sequence[Any], Iterable[Any]], ...] = (
        ("kernels", kernels, PASSES),
        ("archs", archs, SHARED_LIMIT_BYTES),
        ("dtypes", dtypes, _DTYPE_NAMES),
    )
    for name, given, allowed in known:
        if unknown := [value for value in given if value not in allowed]:
            raise ValueError(f"{name} has {unknown}; expected some of {list(allowed)}")
    try:
        import triton
    except ModuleNotFoundError as error:
        raise ValueError("the compile report needs the package 'triton', which is not installed") from error
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set; the compile report expects Triton's compiler")


def _kernel(name: str) -> Any:
    from mezzotint.kernels import triton_backward, triton_forward

    return {
        "forward": triton_forward.attention_forward,
        "dq": triton_backward.attention_backward_dq,
        "dkdv": triton_backward.attention_backward_dkdv,
    }[name]


def _compile(kernel: str, arch: int, dtype: str, shape: KernelShape, config: TileConfig) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = _kernel(kernel)
    constants = shape.constants(config) | dict.fromkeys(_OPTIONAL_POINTERS)
    constants = {name: value for name, value in constants.items() if name in fn.arg_names}
    signature = {name: "constexpr" if name in constants else _type(name, dtype) for name in fn.arg_names}
    pointers = [(fn.arg_names.index(name),) for name, kind in signature.items() if kind.startswith("*")]
    attributes = {path: [["tt.divisibility", 16]] for path in pointers}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    source = ASTSource(fn, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _type(argument: str, dtype: str) -> str:
    """An argument's Triton type, by its name."""
    if argument in _INT32_POINTERS:
        return "*i32"
    if argument.endswith("_ptr"):
        return "*fp32" if argument in _FP32_POINTERS else f"*{dtype}"
    return "fp32" if argument.startswith("scale") else "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from cuobjdump."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump answered {text!r}; expected REG and STACK")
    return int(found[1]), int(found[2])


def _useful_over_issued(kernel: str, width: int, config: TileConfig, ptx: str) -> float | None:
    """Useful multiplications of one turn of the loop over those of all its matrix instructions, all warps together.

    Each product stands once in the text, inside the loop. wgmma m64nNk16 is issued by four warps together, mma.sync
    m16n8k16 by each warp.
    """
    groups = math.ceil(config.num_warps / 4)
    issued = sum(
        int(m) * int(n) * int(k) * (groups if family == "wgmma.mma_async.sync" else config.num_warps)
        for family, m, n, k in _MMA.findall(ptx)
    )
    if issued == 0:
        return None
    products = {"forward": 2, "dq": 3, "dkdv": 4}[kernel]
    return products * width * config.tile_q * config.tile_k / issued


def _ctas_per_sm(arch: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Registers are given out in eights a thread, and the hardware keeps 1 KB of shared memory for each program."""
    by_registers = _REGISTERS_PER_SM // (math.ceil(registers / 8) * 8 * 32 * num_warps)
    by_shared = _SHARED_PER_SM_BYTES[arch] // (shared_bytes + _RESERVED_PER_CTA_BYTES)
    return min(by_registers, by_shared, _WARPS_PER_SM // num_warps, _CTAS_PER_SM)
