"""Keep freed memory in the process while training on a CPU.

glibc hands every large tensor back to the system when it is freed, so each step faults the same gigabyte of
pages in again. With these two settings they are kept and used again.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory; does nothing on another C library."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
