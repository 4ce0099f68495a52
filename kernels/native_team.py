"""The team of threads that the C kernels run on: torch's own, see native/team.h."""

import ctypes
import os
from pathlib import Path

import torch

_team_address: int | None = None


def team_address() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch runs on; 0 where there is none.

    With 0 the kernels start threads of their own for each call. A forked child gets 0, since libgomp's threads are not
    forked with it and it would wait for them for ever.
    """
    global _team_address
    if _team_address is None:
        _team_address = _find_team()
    return _team_address


def _find_team() -> int:
    if not hasattr(os, "RTLD_NOLOAD"):
        return 0
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*"))
    for name in (*map(str, bundled), "libgomp.so.1"):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue  # not loaded in this process
    return 0


def _after_fork() -> None:
    global _team_address
    _team_address = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
