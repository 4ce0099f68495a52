"""Finished pictures as files named after their content, on any file system fsspec knows.

A file is either whole or not there: it is written under a temporary name, flushed to the disk and renamed.
"""

import os
import tempfile
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mezzotint.worker.errors import SettingsError


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

    def url(self, sha256: str) -> str:
        """Where a file is, for those who reach the storage themselves."""
        return str(self._files.unstrip_protocol(self._path(sha256)))

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}.png"


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
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
