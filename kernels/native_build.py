"""Builds the C kernels with the system's compiler, at first use, and loads them.

A library built beforehand (native/kernels.so, .dylib on macOS) is taken first. Otherwise the sources are compiled
once per user into a cache keyed by sources, compiler and flags; a file appears there whole or not at all, so any number
of processes may build at once. MEZZOTINT_CACHE_DIR moves the cache, CC names another compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "native"
ABI = 3  # KERNELS_ABI of native/library.c
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
PREBUILT = SOURCES / f"kernels{SUFFIX}"
FUNCTIONS = (
    "attention_forward", "attention_backward", "modulation_forward", "modulation_backward", "experts_scatter",
    "experts_scatter_backward",
)
"""Each takes the bytes of one struct and returns 0 where it worked."""
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-strict-aliasing", "-ffp-contract=fast", "-w")
BUILD_LIMIT_S = 300

_lock = threading.Lock()
_result: list[ctypes.CDLL | str] = []  # empty until asked; then the library, or why there is none


class BuildError(Exception):
    """Why there is no native library, in words that end a sentence."""


def native_library() -> ctypes.CDLL | None:
    """The loaded kernels; None where they cannot be built here, which a RuntimeWarning says the first time."""
    result = _built()
    return None if isinstance(result, str) else result


@torch.compiler.assume_constant_result  # building a library is nothing that torch.compile could trace
def why_not_native() -> str | None:
    """Why there are no kernels on this machine, in words that end a sentence; None where they are there."""
    result = _built()
    return result if isinstance(result, str) else None


def _built() -> ctypes.CDLL | str:
    if _result:  # without the lock: this is asked at every call
        return _result[0]
    with _lock:
        if not _result:
            _result.append(_load_or_warn())
    return _result[0]


def _load_or_warn() -> ctypes.CDLL | str:
    try:
        return load(PREBUILT) if PREBUILT.exists() else load(build())
    except BuildError as error:
        warnings.warn(f"CPU kernels run on torch's own operators (slower): {error}", RuntimeWarning, stacklevel=4)
        return str(error)


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`. Raises BuildError where it cannot be loaded or was built from other sources."""
    try:
        library = ctypes.CDLL(str(path))
        for name in ("kernels_abi", "kernels_level", *FUNCTIONS):
            getattr(library, name).restype = ctypes.c_int64
        for name in FUNCTIONS:
            getattr(library, name).argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        raise BuildError(f"{path} cannot be loaded ({error})") from error
    if library.kernels_abi() != ABI:
        raise BuildError(f"{path} has the interface {library.kernels_abi()}, expected {ABI}; delete it")
    return library


def build(directory: Path | None = None) -> Path:
    """Compiles the sources unless the cache has them, and returns the library's path.

    directory: where the cache is; None is `cache_directory()`. Raises BuildError where no compiler is, or it fails.
    """
    if sys.maxsize < 2**32:
        raise BuildError("the C kernels need a 64-bit machine")
    command = find_compiler()
    directory = directory or cache_directory()
    target = directory / f"kernels-{_key(command)}{SUFFIX}"
    if not target.exists():
        _compile(command, target)
    return target


def prebuild() -> Path:
    """Puts the library beside its sources, for an image that will have no compiler; returns its path.

    From then on it is the one that is loaded, whatever becomes of the sources. Raises BuildError as `build` does.
    """
    shutil.copy(build(), PREBUILT)
    return PREBUILT


def find_compiler() -> list[str]:
    """The command of the C compiler: CC where it is set, else cc, gcc or clang. Raises BuildError where none is."""
    asked = os.environ.get("CC", "").strip()
    for words in [shlex.split(asked)] if asked else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(words[0])
        if found:
            return [found, *words[1:]]
    raise BuildError(f"CC is {asked!r}, which is not found" if asked else "no C compiler (cc, gcc, clang) is found")


def cache_directory() -> Path:
    """The user's own directory for built libraries, made where it is missing.

    A directory that cannot be written to, or that belongs to someone else, whose code we would then load, is replaced
    by a temporary one for this process.
    """
    given, base = os.environ.get("MEZZOTINT_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    wanted = Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "mezzotint"
    try:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(wanted, os.W_OK) and _is_ours(wanted):
            return wanted
    except OSError:
        log.info("no cache directory can be made at %s", wanted)
    return Path(tempfile.mkdtemp(prefix="mezzotint-"))


def _is_ours(directory: Path) -> bool:
    return not hasattr(os, "getuid") or directory.stat().st_uid == os.getuid()


def _key(command: list[str]) -> str:
    """Names a build: the same key, the same library. The compiler counts by its file, which costs no process."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    compiler = Path(command[0]).resolve()
    status = compiler.stat()
    digest.update(repr((command, str(compiler), status.st_size, status.st_mtime_ns, FLAGS)).encode())
    digest.update(repr((platform.system(), platform.machine())).encode())
    return digest.hexdigest()[:24]


def _compile(command: list[str], target: Path) -> None:
    """Into a file beside the target, which is then renamed: nobody sees half a library, and the last one to finish wins
    over an equal one."""
    log.info("building the CPU kernels (once) with %s", command[0])
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=SUFFIX)
    os.close(handle)
    arguments = [*command, *FLAGS, *map(str, sorted(SOURCES.glob("*.c"))), "-o", partial, "-lm"]
    try:
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
        if result.returncode:
            said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip()[-300:])
            raise BuildError(f"{command[0]} fails on the C kernels ({said})")
        os.replace(partial, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run ({error})") from error
    finally:
        Path(partial).unlink(missing_ok=True)
