"""The header of a safetensors file that somebody else made, checked before a tensor is read. No torch here.

The format: eight bytes with the header's length, little-endian; the header, a JSON object of dtype, shape and offsets
of each tensor; then the tensors, one behind the other (huggingface/safetensors, README).
"""

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_FILE_BYTES = 2**31
MAX_HEADER_BYTES = 2**21
MAX_TENSORS = 8192
MAX_KEY_CHARACTERS = 200
MAX_DIMENSIONS = 2
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that an adapter may have."""

_KEY = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
_MADE_OTHERWISE = {b"PK\x03\x04": "a zip archive, as torch.save writes it", b"\x80": "a pickle", b"\x1f\x8b": "gzip"}


class AdapterFileError(ValueError):
    """An adapter's file is refused; the text is one sentence that names the file and the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """start, end: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a file says that it holds. Its tensors are in the order of their bytes, without gaps."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]
    size_bytes: int


def read_header(path: Path) -> Header:
    """Raises AdapterFileError unless the file is safetensors as an adapter may be, whatever its name ends in."""
    with open_adapter(path) as file:
        return header_of(file, path)


def open_adapter(path: Path) -> BinaryIO:
    """Open a plain file of at most MAX_FILE_BYTES. Raises AdapterFileError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            refuse(path, "is no plain file")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, AdapterFileError):
            raise
        refuse(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        file.close()
        refuse(path, f"has {size:,} bytes; at most {MAX_FILE_BYTES:,} are allowed")
    return file


def header_of(file: BinaryIO, path: Path) -> Header:
    """The checked header of an open file, which then stands at the first tensor. path: what errors name."""
    size, start = os.fstat(file.fileno()).st_size, file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{":
        kind = next((kind for mark, kind in _MADE_OTHERWISE.items() if start.startswith(mark)), "something else")
        refuse(path, f"is not safetensors but {kind}; only safetensors files are read")
    if length > MAX_HEADER_BYTES:
        refuse(path, f"has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed")
    raw = b"{" + file.read(length - 1)
    if len(raw) < length:
        refuse(path, f"ends within its header, which is to have {length:,} bytes")
    entries = _json(raw, path)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    if not 1 <= len(entries) <= MAX_TENSORS:
        refuse(path, f"holds {len(entries):,} tensors; 1 to {MAX_TENSORS:,} are allowed")
    tensors = {key: _place(key, entry, 8 + length, path) for key, entry in entries.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].start))
    _check_tiling(tensors, 8 + length, size, path)
    return Header(tensors=tensors, metadata=metadata, size_bytes=size)


def refuse(path: Path, reason: str) -> NoReturn:
    """Raise AdapterFileError; control characters of a file's name do not reach the terminal."""
    raise AdapterFileError(f"{shown(str(path), 200)} {reason}.")


def shown(text: str, most: int = 80) -> str:
    """A text from a file, short and printable."""
    plain = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _json(raw: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    def no_number(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        # The only object comes first, as header_of has seen: what is parsed is a dict.
        parsed: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        refuse(path, f"has a header that is not JSON: {shown(str(error))}")
    return parsed


def _metadata(given: Any, path: Path) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        refuse(path, "has metadata that are not texts by name")
    return given


def _place(key: str, entry: Any, data_start: int, path: Path) -> TensorPlace:
    if len(key) > MAX_KEY_CHARACTERS or not _KEY.fullmatch(key):
        refuse(path, f"holds a tensor {shown(key)!r}; a name is letters, digits, . - and _, at most "
                     f"{MAX_KEY_CHARACTERS}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"describes tensor {key} by something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse(path, f"holds tensor {key} of dtype {shown(str(dtype))}; it must be {', '.join(DTYPE_BYTES)}")
    if not _whole(shape) or len(shape) > MAX_DIMENSIONS or not all(1 <= side <= MAX_FILE_BYTES for side in shape):
        refuse(path, f"holds tensor {key} of shape {shown(str(shape))}; at most {MAX_DIMENSIONS} sides from 1 on are "
                     "allowed")
    if not _whole(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        refuse(path, f"holds tensor {key} at {shown(str(offsets))}, which is not as long as its shape and dtype say")
    return TensorPlace(dtype=dtype, shape=tuple(shape), start=data_start + offsets[0], end=data_start + offsets[1])


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _check_tiling(tensors: Mapping[str, TensorPlace], at: int, size: int, path: Path) -> None:
    """Tensors must follow each other from the header's end to the file's end."""
    for key, place in tensors.items():
        if place.start != at:
            refuse(path, f"has tensor {key} at byte {place.start:,} where byte {at:,} is next; tensors must follow "
                         "each other without gaps")
        at = place.end
    if at != size:
        refuse(path, f"has {size:,} bytes where its header speaks of {at:,}, so it was cut or added to")
