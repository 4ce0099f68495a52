"""Checkpoints that are complete and atomic: a folder is written aside, synced, and renamed into place."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mezzotint.training.config import ConfigError

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
    """Write RUN/checkpoints/step-XXXXXXXX and prune older ones."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.state['step']:08d}"
    unfinished = folder / f".unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    save_file(checkpoint.masters, unfinished / "masters.safetensors")
    save_file(checkpoint.ema, unfinished / "ema.safetensors")
    torch.save(checkpoint.optimizer, unfinished / "optimizer.pt")
    (unfinished / "state.json").write_text(json.dumps(checkpoint.state))
    for path in (*unfinished.iterdir(), unfinished):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    _sync(folder)
    for old in list_checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one back. Raises ConfigError when a file is missing or broken."""
    try:
        return Checkpoint(
            masters=load_file(folder / "masters.safetensors"),
            ema=load_file(folder / "ema.safetensors"),
            optimizer=torch.load(folder / "optimizer.pt", weights_only=True),
            state=json.loads((folder / "state.json").read_text()),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"checkpoint {folder} cannot be read ({error}); delete it to go on from the one before."
        ) from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
