"""A pretrained network from whatever a person has: an original file, a diffusers folder, or a folder of ours."""

from pathlib import Path

import torch
from diffusers import ModelMixin

from mezzotint.dit.checkpoints import from_original
from mezzotint.dit.checkpoints.diffusers_folders import READERS, from_diffusers
from mezzotint.dit.checkpoints.files import read_folder, read_json, read_weights
from mezzotint.dit.checkpoints.guess import guess_original
from mezzotint.dit.checkpoints.keys import same, take
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.diffusers_settings import diffusers_class
from mezzotint.dit.microdit import MicroDiT
from mezzotint.dit.model import DiT
from mezzotint.dit.pixart import PixArt
from mezzotint.dit.video_dit import VideoDiT

OURS: dict[str, type[ModelMixin]] = {made.__name__: made for made in (ClassDiT, VideoDiT, PixArt, MicroDiT, DiT)}


def load_pretrained(source: Path, num_heads: int | None = None) -> ModelMixin:
    """The network of a checkpoint file of DiT, Latte or MicroDiT, or of a folder with config.json, ours or diffusers'.

    num_heads: for files only, which do not tell it unless their size is a published one.
    Raises ValueError that says what is wrong with the source.
    """
    if source.is_dir():
        return _from_folder(source)
    state = read_weights(source)
    return from_original(*guess_original(state, num_heads), state)


def _from_folder(folder: Path) -> ModelMixin:
    name = diffusers_class(read_json(folder / "config.json"))
    if name in READERS:
        return from_diffusers(folder)
    if name in OURS:
        return _from_our_folder(folder, OURS[name])
    raise ValueError(f"{folder} holds a {name}; it must be one of {', '.join([*READERS, *OURS])}.")


def _from_our_folder(folder: Path, made: type[ModelMixin]) -> ModelMixin:
    """As from_pretrained, which fills a missing key with random numbers."""
    config, state = read_folder(folder)
    with torch.device("meta"):
        names = made.from_config(config).state_dict()
    return take(lambda: made.from_config(config), [entry for name in names for entry in same(name, name)], state)
