"""Checkpoints that are complete and atomic: a folder is written aside, synced, and renamed into place."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mezzotint.training.config import ConfigError

_UNFINISHED = ".unfinished-"
KEPT = 2
"""Checkpoints kept: the newest, and one before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """fp32 masters and EMA by name, both optimizers' state, and `state`: step, seconds trained, the whole
    config, the states of the process's own random generators."""

    masters: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write RUN/checkpoints/step-XXXXXXXX and prune older ones; one that is there already is left."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.state['step']:08d}"
    if target.exists():
        return target
    for left in folder.glob(f"{_UNFINISHED}*"):  # by processes that were killed
        shutil.rmtree(left)
    unfinished = folder / f"{_UNFINISHED}{os.getpid()}"
    unfinished.mkdir()
    save_file(checkpoint.masters, unfinished / "masters.safetensors")
    save_file(checkpoint.ema, unfinished / "ema.safetensors")
    torch.save(checkpoint.optimizer, unfinished / "optimizer.pt")
    (unfinished / "state.json").write_text(json.dumps(checkpoint.state))
    for path in (*unfinished.iterdir(), unfinished):
        _sync(path)
    unfinished.rename(target)
    _sync(folder)
    for old in list_checkpoints(run)[:-KEPT]:
        going = folder / f"{_UNFINISHED}{old.name}"
        old.rename(going)  # so that a kill leaves no half of it under its name
        shutil.rmtree(going)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one back. Raises ConfigError when a file is missing or broken."""
    return Checkpoint(
        masters=_read(folder / "masters.safetensors", load_file),
        ema=_read(folder / "ema.safetensors", load_file),
        optimizer=_read(folder / "optimizer.pt", _load_plain),
        state=_read(folder / "state.json", lambda path: json.loads(path.read_text())),
    )


def _load_plain(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True, map_location="cpu")


def _read(path: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return load(path)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); delete the folder {path.parent.name} to go on from "
            "the checkpoint before it."
        ) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
