"""What the Triton kernels compile to, read without a GPU: registers, spills, shared memory, matrix instructions.

Triton compiles for a named architecture on any Linux machine. The kernels are launched as ever, by their own host
code, under a driver that runs nothing (compile_driver.py); the cubin is read with cuobjdump, the PTX with the counts
below.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mezzotint.kernels.triton_configs import PASSES

if TYPE_CHECKING:
    from mezzotint.kernels.compile_cases import CompileCase
    from mezzotint.kernels.compile_driver import Binary

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
_MMA = re.compile(r"(wgmma\.mma_async\.sync|mma\.sync)\.aligned[.\w]*?\.m(\d+)n(\d+)k(\d+)")

#: Multiplications that one turn of a kernel's loop needs, from its compile-time arguments.
_USEFUL: dict[str, Callable[[dict[str, Any]], int]] = {
    "attention_forward": lambda c: c["TILE_Q"] * c["TILE_K"] * (c["D"] + c["V"]),
    "attention_backward_dq": lambda c: c["TILE_Q"] * c["TILE_K"] * (2 * c["D"] + c["V"]),
    "attention_backward_dkdv": lambda c: c["TILE_Q"] * c["TILE_K"] * (2 * c["D"] + 2 * c["V"]),
    "grouped_product": lambda c: c["ROWS"] * c["INNER"] * c["OUTER"],
    "grouped_weights": lambda c: c["ROWS"] * c["INNER"] * c["OUTER"],
}
_TILES = ("TILE_Q", "TILE_K", "ROWS", "INNER", "OUTER", "TILE", "WIDTH", "SUM_CHANNELS")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRow:
    """One kernel in one form for one architecture.

    Args:
        kernel: its function.
        arch: 80 or 90.
        dtype: "bf16", "fp16" or "fp32".
        case: what it was compiled for, in words.
        head_dim: channels of q, k and v; None where there are no heads.
        tile: sides of a program's tile, by the names that the kernel gives them.
        num_warps, num_stages: of a program and of its load pipeline.
        registers: a thread.
        stack_bytes: a thread; anything above 0 is spilled registers.
        shared_bytes: dynamic shared memory a program.
        wgmma, mma_sync, cp_async: instructions in the PTX text.
        useful_over_issued: multiplications that one turn of the loop needs over those that its matrix instructions
            make; None where none are used (fp32, kernels by rows).
        ctas_per_sm: programs that registers, shared memory and warps let run together on one SM.
    """

    kernel: str
    arch: int
    dtype: str
    case: str
    head_dim: int | None
    tile: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int
    mma_sync: int
    cp_async: int
    useful_over_issued: float | None
    ctas_per_sm: int


def default_cases() -> list["CompileCase"]:
    """Every entry of the attention kernels' tables with all features, the usual ones without them, and the other
    kernels at a DiT's width. Raises ValueError as `compile_report` does."""
    _check_triton()
    from mezzotint.kernels.compile_cases import attention_case, operation_cases, table_cases

    plain = [attention_case(name, 72, "bf16", 128, features=False) for name in PASSES]
    return [*plain, *table_cases(), *operation_cases((1152,), ("bf16", "fp32"))]


def compile_report(cases: Sequence["CompileCase"] | None = None) -> list[CompileRow]:
    """Compile what the cases launch and read what came out, about a second a kernel; each form is listed once.

    cases: None is `default_cases()`. Raises ValueError where Triton is not installed or its interpreter is switched on.
    """
    _check_triton()
    from mezzotint.kernels.compile_driver import compiling_for

    rows = []
    listed: set[Binary] = set()
    for case in default_cases() if cases is None else cases:
        for arch in case.archs:
            with compiling_for(arch) as launched:
                case.run()
            new = [binary for binary in dict.fromkeys(launched) if binary not in listed]
            listed.update(new)
            rows += [_row(binary, arch, case) for binary in new]
    return rows


def limits(rows: Iterable[CompileRow]) -> list[str]:
    """One sentence for each limit that a row breaks: spills, shared memory, useful / issued, CTAs an SM."""
    return [sentence for row in rows for sentence in _broken(row)]


def _check_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the compile report needs the package 'triton', which is not installed")
    import triton

    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set; the compile report expects Triton's compiler")


def _row(binary: "Binary", arch: int, case: "CompileCase") -> CompileRow:
    return CompileRow(
        kernel=binary.name,
        arch=arch,
        dtype=case.dtype,
        case=case.text,
        head_dim=case.head_dim,
        tile={name: binary.constants[name] for name in _TILES if name in binary.constants},
        num_warps=binary.num_warps,
        num_stages=binary.num_stages,
        registers=binary.registers,
        stack_bytes=binary.stack_bytes,
        shared_bytes=binary.shared_bytes,
        wgmma=len(re.findall(r"wgmma\.mma_async\.sync", binary.ptx)),
        mma_sync=len(re.findall(r"mma\.sync\.aligned", binary.ptx)),
        cp_async=len(re.findall(r"cp\.async\.c[ag]\.shared", binary.ptx)),
        useful_over_issued=_useful_over_issued(binary),
        ctas_per_sm=_ctas_per_sm(arch, binary),
    )


def _broken(row: CompileRow) -> list[str]:
    how = f"{' x '.join(map(str, row.tile.values()))}, {row.num_warps} warps, {row.num_stages} stages"
    name = f"{row.kernel} sm_{row.arch} {row.dtype} {row.case} ({how})"
    broken = []
    if row.stack_bytes > 0:
        broken.append(f"{name} spills {row.stack_bytes} bytes a thread; expected none")
    if row.shared_bytes > SHARED_LIMIT_BYTES[row.arch]:
        limit = SHARED_LIMIT_BYTES[row.arch]
        broken.append(f"{name} takes {row.shared_bytes} bytes of shared memory; expected at most {limit}")
    if row.head_dim == 72 and row.useful_over_issued is not None and row.useful_over_issued < USEFUL_LIMIT:
        broken.append(f"{name} makes use of {row.useful_over_issued:.3f} of its MMA; expected at least {USEFUL_LIMIT}")
    narrow = row.head_dim is not None and row.head_dim <= 72 and row.dtype != "fp32"
    if (row.kernel, row.arch) == ("attention_forward", 90) and narrow and row.ctas_per_sm < 2:
        broken.append(f"{name} leaves room for {row.ctas_per_sm} CTA an SM; expected at least 2")
    return broken


def _useful_over_issued(binary: "Binary") -> float | None:
    """Useful multiplications of one turn of the loop over those of all its matrix instructions, all warps together.

    Each product stands once in the text, inside the loop. wgmma m64nNk16 is issued by four warps together, mma.sync
    m16n8k16 by each warp.
    """
    groups = math.ceil(binary.num_warps / 4)
    issued = sum(
        int(m) * int(n) * int(k) * (groups if family == "wgmma.mma_async.sync" else binary.num_warps)
        for family, m, n, k in _MMA.findall(binary.ptx)
    )
    return _USEFUL[binary.name](binary.constants) / issued if issued else None


def _ctas_per_sm(arch: int, binary: "Binary") -> int:
    """Registers are given out in eights a thread, and the hardware keeps 1 KB of shared memory for each program."""
    by_registers = _REGISTERS_PER_SM // (math.ceil(binary.registers / 8) * 8 * 32 * binary.num_warps)
    by_shared = _SHARED_PER_SM_BYTES[arch] // (binary.shared_bytes + _RESERVED_PER_CTA_BYTES)
    return min(by_registers, by_shared, _WARPS_PER_SM // binary.num_warps, _CTAS_PER_SM)
