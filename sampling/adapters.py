"""Adapter files to adapters of a network, and back. Nothing is believed of a file: see `safetensors_header`."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mezzotint.dit.adapters import Adapter, Lora, check_fit
from mezzotint.sampling.adapter_card import MAX_RANK, AdapterCard
from mezzotint.sampling.adapter_files import AdapterFile, check_base
from mezzotint.sampling.safetensors_header import Header, TensorPlace, header_of, open_adapter, refuse

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PREFIX, DOWN, UP = "transformer.", ".lora_A.weight", ".lora_B.weight"

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Down [r, I] and up [O, r] by the path of a Linear."""


def read_adapter_tensors(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The checked header and the tensors of a file. Raises AdapterFileError, also for values that are not finite."""
    with open_adapter(path) as file:
        header = header_of(file, path)
        tensors = {}
        for key, place in header.tensors.items():
            raw = bytearray(place.end - place.start)
            if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]  # a file that is opened as bytes has it
                refuse(path, f"ends within tensor {key}")
            tensors[key] = _tensor(raw, place)
            if not bool(tensors[key].isfinite().all()):
                refuse(path, f"holds a value that is not finite in {key}")
    return header, tensors


def _tensor(raw: bytearray, place: TensorPlace) -> Tensor:
    return torch.frombuffer(raw, dtype=DTYPES[place.dtype]).reshape(place.shape)


def pairs_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices under the keys transformer.MODULE.lora_A.weight and .lora_B.weight, in pairs.

    Raises AdapterFileError for any other key, a half without the other, ranks that differ or are above MAX_RANK.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in (DOWN, UP) if key.endswith(end)), None)
        if end is None or not key.startswith(PREFIX) or len(key) <= len(PREFIX) + len(end):
            refuse(path, f"holds {key}, which is no matrix of an adapter; names are {PREFIX}MODULE{DOWN} and {UP}")
        modules.setdefault(key.removeprefix(PREFIX).removesuffix(end), {})[end] = tensor
    if not modules:
        refuse(path, "holds no matrices of an adapter")
    for module, halves in modules.items():
        if halves.keys() != {DOWN, UP}:
            refuse(path, f"holds only {next(iter(halves))} of {module}")
        down, up = halves[DOWN], halves[UP]
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or down.shape[0] > MAX_RANK:
            refuse(path, f"holds {list(up.shape)} by {list(down.shape)} for {module}; both must be matrices with the "
                         f"same rank, at most {MAX_RANK}")
    return {module: (halves[DOWN], halves[UP]) for module, halves in modules.items()}


def load_adapter(file: AdapterFile, network: nn.Module, model: str, fingerprint: str) -> Adapter:
    """An adapter for a network. model, fingerprint: what the network is, for errors and to compare.

    Raises AdapterFileError for a bad file, and ValueError where it was trained on another base, or does not fit.
    """
    check_base(file, model, fingerprint)
    _, tensors = read_adapter_tensors(file.path)
    pairs = pairs_of(tensors, file.path)
    loras = loras_of(pairs, file.card, file.path)
    check_fit(file.name, loras, network)
    return Adapter(name=file.name, loras=loras)


def loras_of(pairs: Pairs, card: AdapterCard, path: Path) -> dict[str, Lora]:
    """Pairs with the scale of their card. Raises AdapterFileError where the card speaks of another rank."""
    rank = max(down.shape[0] for down, _ in pairs.values())
    if rank != card.rank:
        refuse(path, f"says that its rank is {card.rank}, and has matrices of rank {rank}")
    return {module: Lora(down_rI=down, up_Or=up, scale=card.scale) for module, (down, up) in pairs.items()}


def save_adapter(path: Path, pairs: Pairs, card: AdapterCard) -> None:
    """Write an adapter of ours; it bears its name only once it is whole."""
    tensors = {f"{PREFIX}{module}{DOWN}": down.contiguous() for module, (down, _) in pairs.items()}
    tensors |= {f"{PREFIX}{module}{UP}": up.contiguous() for module, (_, up) in pairs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        # Clones, since safetensors takes no two tensors of one memory, and q, k and v may share their down matrix.
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, unfinished, metadata=card.to_header())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
