"""One `mezzotint up` a data folder."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from mezzotint.worker.errors import ServiceError


class FolderInUse(ServiceError):
    """Another `mezzotint up` has this data folder."""


def lock_folder(folder: Path) -> TextIO:
    """Lock a data folder, made if need be, for as long as the returned file is open; the lock also goes
    when the process dies. Raises FolderInUse with one sentence that names the other process."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "up.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ServiceError(
            f"the data folder {folder} cannot be used: {error.strerror}; give another --data-dir."
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise FolderInUse(
            f"mezzotint is already up on {folder} (process {holder}); use that one, stop it, "
            "or give another --data-dir."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
