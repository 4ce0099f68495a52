"""Folders of diffusers' DiTTransformer2DModel and PixArtTransformer2DModel, read and written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from mezzotint.dit.checkpoints.diffusers_dit import from_diffusers_dit, to_diffusers_dit
from mezzotint.dit.checkpoints.files import read_folder
from mezzotint.dit.checkpoints.pixart import from_diffusers_pixart, to_diffusers_pixart
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.diffusers_settings import DIT, PIXART, diffusers_class
from mezzotint.dit.latent_network import LatentNetwork
from mezzotint.dit.pixart import PixArt

READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], LatentNetwork]] = {
    DIT: from_diffusers_dit, PIXART: from_diffusers_pixart,
}


def from_diffusers(folder: str | Path) -> LatentNetwork:
    """A network with the weights of a diffusers model folder (config.json and weights), in evaluation mode.

    Raises ValueError where the folder is of another class, its files cannot be read, or they do not fit each other.
    """
    config, state = read_folder(Path(folder))
    name = diffusers_class(config)
    if name not in READERS:
        raise ValueError(f"{folder} holds a {name}; it must be one of {', '.join(READERS)}.")
    return READERS[name](config, state)


def to_diffusers(network: LatentNetwork, folder: str | Path) -> None:
    """Write a dense network as a folder that diffusers itself loads. Raises ValueError for what it cannot hold."""
    if isinstance(network, ClassDiT):
        kind, (config, state) = DIT, to_diffusers_dit(network)
    elif isinstance(network, PixArt):
        kind, (config, state) = PIXART, to_diffusers_pixart(network)
    else:
        raise ValueError(f"network is a {type(network).__name__}; it must be a ClassDiT or a PixArt.")
    with torch.device("meta"):
        theirs = getattr(diffusers, kind)(**config)
    theirs.load_state_dict(state, assign=True)
    theirs.save_pretrained(folder)

