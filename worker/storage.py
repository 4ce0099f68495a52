"""Finished pictures as files named after their content, on any file system fsspec knows.

A file is either whole or not there: it is written under a temporary name, flushed to the disk and renamed.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mezzotint.worker.errors import SettingsError

_PART = ".part-"
_OURS = re.compile(r"/([0-9a-f]{2})/([0-9a-f]{64})\.png")
_HALF = re.compile(r"/[0-9a-f]{2}/\.part-[^/]+")


class StorageError(OSError):
    """A file could not be written or read; the text is one sentence that says what to do."""


class Storage:
    """A folder of content-addressed PNG files: `ab/abcd....png` for the SHA-256 abcd..."""

    def __init__(self, url: str) -> None:
        """Raises SettingsError when the address cannot be used; nothing is made before the first `put`."""
        try:
            self._files, root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"MEZZOTINT_STORAGE_URL is {url!r}; {error}.") from None
        self._root = str(root).rstrip("/")

    def put(self, sha256: str, data: bytes) -> None:
        """Write a file, unless it is there already. Raises StorageError, leaving no half file."""
        path = self._path(sha256)
        try:
            if self._files.exists(path):
                return
            if isinstance(self._files, LocalFileSystem):
                _write_whole(Path(path), data)
            else:
                self._files.pipe_file(path, data)  # object stores show an object once it is complete
        except OSError as error:
            raise StorageError(
                f"the picture could not be written to {self._root}: {error.strerror or error}; "
                "free some space there, or set MEZZOTINT_STORAGE_URL to another place."
            ) from error

    def get(self, sha256: str) -> bytes:
        """The bytes of a file. Raises StorageError."""
        try:
            return bytes(self._files.cat_file(self._path(sha256)))
        except OSError as error:
            raise StorageError(f"the picture {self.url(sha256)} cannot be read: {error}.") from error

    def remove(self, sha256: str) -> None:
        """Delete a file; one that is not there is as good as deleted."""
        path = self._path(sha256)
        if self._files.exists(path):
            self._files.rm_file(path)

    def names(self, older_than_s: float) -> Iterator[str]:
        """The SHA-256 of each file of ours that was written that many seconds ago or longer. What else lies in the
        same place is never touched."""
        for path in self._paths():
            found = _OURS.fullmatch(path.removeprefix(self._root))
            if found and found[1] == found[2][:2] and self._is_older(path, older_than_s):
                yield found[2]

    def remove_half_written(self, older_than_s: float) -> int:
        """Remove what a killed process left in the middle of a write; how many files went."""
        half = [p for p in self._paths() if _HALF.fullmatch(p.removeprefix(self._root))]
        old = [path for path in half if self._is_older(path, older_than_s)]
        for path in old:
            self._files.rm_file(path)
        return len(old)

    def _paths(self) -> list[str]:
        """Every file, read anew: object stores remember a listing."""
        self._files.invalidate_cache()
        return [str(path) for path in self._files.find(self._root)] if self._files.exists(self._root) else []

    def _is_older(self, path: str, seconds: float) -> bool:
        try:
            return bool((datetime.now(UTC) - self._files.modified(path).astimezone(UTC)).total_seconds() >= seconds)
        except FileNotFoundError:  # gone meanwhile
            return False

    def url(self, sha256: str) -> str:
        """Where a file is, for those who reach the storage themselves."""
        return str(self._files.unstrip_protocol(self._path(sha256)))

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}.png"


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
