"""Calls the C kernels: each takes one struct of 8-byte fields, and an instruction set that this machine has."""

import struct

import torch

from mezzotint.kernels.native_build import native_library, why_not_native

LEVELS = ("generic", "avx2", "avx512", "avx512bf16")
"""Instruction sets, by the number that native/level.h gives them."""

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1}
"""dtypes, by the number that native/memory.h gives them."""

_forced_level: int | None = None  # tests run every level that the machine has
_best_level: int | None = None


def instruction_set() -> str:
    """The best instruction set of this machine that the kernels know, one of LEVELS. Raises ValueError without them."""
    global _best_level
    if _best_level is None:
        library = native_library()
        if library is None:
            raise ValueError(f"the C kernels were asked for; expected another backend, since {why_not_native()}")
        _best_level = int(library.kernels_level())
    return LEVELS[_best_level]


def level() -> int:
    """The number of the instruction set that calls are made with."""
    return LEVELS.index(instruction_set()) if _forced_level is None else _forced_level


def call_native(function: str, layout: struct.Struct, *fields: int | float) -> None:
    """Run one of native_build.FUNCTIONS on `fields`, packed as `layout`.

    Raises ValueError where the kernels cannot be built or the machine lacks the instruction set, MemoryError where
    memory for the threads ran out.
    """
    library = native_library()
    if library is None:
        raise ValueError(f"the C kernels were asked for; expected another backend, since {why_not_native()}")
    status = getattr(library, function)(layout.pack(*fields))
    if status == -1:
        raise MemoryError(f"{function} ran out of memory")
    if status:
        raise ValueError(f"instruction set is number {level()}; expected one that this machine has, see LEVELS")
