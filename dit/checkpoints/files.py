"""Weights from disk: safetensors, or torch's own files read as plain tensors (weights_only)."""

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
NESTED = ("ema", "model", "state_dict")
"""Where training checkpoints keep their weights; the averaged ones are better, so they come first."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Of a training checkpoint its averaged weights. Raises ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"{path} is not there, or is no file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in TORCH_SUFFIXES:
            return _weights_of(path, _load_plain(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as weights: {reason}") from None
    raise ValueError(f"{path} ends in {path.suffix!r}; it must end in .safetensors or {', '.join(TORCH_SUFFIXES)}.")


def _load_plain(path: Path) -> Any:
    # Nothing but tensors and plain values is let in; argparse.Namespace is where DiT's trainer keeps its settings.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    """Files of torch before 1.6 are no archives, and cannot be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _weights_of(path: Path, loaded: Any) -> dict[str, Tensor]:
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no state dict; it must map names to tensors.")
    return dict(loaded)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a folder in diffusers' layout, in one file or several.

    Raises ValueError that names what is not there or cannot be read.
    """
    return read_json(folder / "config.json"), _read_folder_weights(folder)


def _read_folder_weights(folder: Path) -> dict[str, Tensor]:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return read_weights(folder / name)
        if (folder / f"{name}.index.json").is_file():
            parts = sorted(set(read_json(folder / f"{name}.index.json")["weight_map"].values()))
            return {key: tensor for part in parts for key, tensor in read_weights(folder / part).items()}
    raise ValueError(f"{folder} holds no weights; it must have {' or '.join(FOLDER_FILES)}, or their index.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return value
