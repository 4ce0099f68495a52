"""The C library of norm_modulate: found beside the sources, in the cache, or compiled into it at first use.

Compiler, flags and cache are those of native_build.py.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path

from mezzotint.kernels.native_build import (
    BUILD_LIMIT_S,
    FLAGS,
    SOURCES,
    SUFFIX,
    BuildError,
    cache_directory,
    find_compiler,
)

ABI = 1  # MODULATION_ABI of native/modulation.c
PREBUILT = SOURCES / f"modulation{SUFFIX}"

_lock = threading.Lock()
_result: list[ctypes.CDLL | str] = []  # empty until asked; then the library, or why there is none


def modulation_library() -> ctypes.CDLL | str:
    """The loaded library; where there can be none, why, in words that end a sentence. The first call builds it, and
    says with a RuntimeWarning where that fails."""
    if _result:  # without the lock: this is asked at every call
        return _result[0]
    with _lock:
        if not _result:
            try:
                _result.append(load(PREBUILT if PREBUILT.exists() else build()))
            except BuildError as error:
                said = f"norm_modulate runs on torch's own operators (slower): {error}"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
                _result.append(str(error))
    return _result[0]


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`. Raises BuildError where it cannot be loaded or was built from other sources."""
    try:
        library = ctypes.CDLL(str(path))
        for name in ("modulation_abi", "modulation_level", "modulation_forward", "modulation_backward"):
            getattr(library, name).restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded ({error})") from error
    if library.modulation_abi() != ABI:
        raise BuildError(f"{path} has the interface {library.modulation_abi()}, expected {ABI}; delete it")
    library.modulation_forward.argtypes = library.modulation_backward.argtypes = [ctypes.c_char_p]
    return library


def build(directory: Path | None = None) -> Path:
    """Compiles the sources unless the cache has them, and returns the library's path.

    directory: where the cache is; None is the user's. Raises BuildError where no compiler is, or it fails.
    """
    command = find_compiler()
    directory = directory or cache_directory()
    target = directory / f"modulation-{_key(command)}{SUFFIX}"
    if not target.exists():
        _compile(command, target)
    return target


def _key(command: list[str]) -> str:
    """Names a build: the same key, the same library. The compiler counts by its file, which costs no process."""
    digest = hashlib.sha256()
    for source in [SOURCES / "modulation.c", *sorted(SOURCES.glob("*.h"))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    status = Path(command[0]).resolve().stat()
    digest.update(repr((command, status.st_size, status.st_mtime_ns, FLAGS)).encode())
    return digest.hexdigest()[:24]


def _compile(command: list[str], target: Path) -> None:
    """Into a file beside the target, which is then renamed: nobody sees half a library."""
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=SUFFIX)
    os.close(handle)
    arguments = [*command, *FLAGS, str(SOURCES / "modulation.c"), "-o", partial, "-lm"]
    try:
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
        if result.returncode:
            raise BuildError(f"{command[0]} fails on modulation.c ({result.stderr.strip()[-300:]})")
        os.replace(partial, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run ({error})") from error
    finally:
        Path(partial).unlink(missing_ok=True)
