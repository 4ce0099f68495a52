"""The original checkpoints of DiT (arXiv 2212.09748), dense and class-conditional."""

from collections.abc import Mapping
from typing import Any

from mezzotint.dit.checkpoints.keys import Entry, give, refuse_unless, take
from mezzotint.dit.checkpoints.original import all_blocks, complete, outer_entries, shared_settings
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.latent_config import ClassDiTConfig


def from_dit(config: Mapping[str, Any], state: Mapping[str, Any]) -> ClassDiT:
    """The network of an original configuration and state dict. Raises ValueError where the two do not fit."""
    whole = complete("dit", config, {})
    settings = shared_settings(whole) | {
        "num_classes": whole["num_classes"], "null_class": whole["class_dropout_prob"] > 0,
    }
    return take(lambda: ClassDiT(**settings), _entries(ClassDiTConfig(**settings)), state)


def to_dit(network: ClassDiT) -> dict[str, Any]:
    """The state dict under the original keys. Raises ValueError for what the original network cannot be."""
    shape = network.shape
    refuse_unless("DiT", shape, segments=None, condition_per_block=False, frequency_shift=0, mlp_norm_eps=1e-6)
    return give(_entries(shape), network)


def _entries(shape: ClassDiTConfig) -> list[Entry]:
    blocks = all_blocks([(f"blocks.{i}", f"blocks.{i}", role) for i, role in enumerate(shape.roles)])
    return outer_entries(shape.patch_size, has_labels=shape.num_classes > 0) + blocks
