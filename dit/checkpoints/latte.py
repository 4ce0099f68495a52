"""The original checkpoints of Latte (arXiv 2401.03048): unconditional and class-conditional clips."""

from collections.abc import Mapping
from typing import Any

from mezzotint.dit.checkpoints.keys import Entry, give, refuse_unless, table, take
from mezzotint.dit.checkpoints.original import all_blocks, complete, outer_entries, shared_settings
from mezzotint.dit.latent_config import VideoDiTConfig
from mezzotint.dit.segment_layout import Role
from mezzotint.dit.video_dit import VideoDiT

UNCONDITIONAL, CLASSES = 1, 2
"""Values of the setting `extras`."""


def from_latte(config: Mapping[str, Any], state: Mapping[str, Any]) -> VideoDiT:
    """The network of an original configuration and state dict. Raises ValueError where the two do not fit."""
    own = {"num_frames": 16, "extras": UNCONDITIONAL, "attention_mode": "math"}
    whole = complete("latte", config, own)
    if whole["extras"] not in (UNCONDITIONAL, CLASSES):
        raise ValueError(f"extras is {whole['extras']}; it must be 1 (unconditional) or 2 (class labels).")
    settings = shared_settings(whole) | {
        "num_classes": whole["num_classes"] if whole["extras"] == CLASSES else 0,
        "null_class": whole["class_dropout_prob"] > 0, "num_frames": whole["num_frames"],
    }
    return take(lambda: VideoDiT(**settings), _entries(VideoDiTConfig(**settings)), state)


def to_latte(network: VideoDiT) -> dict[str, Any]:
    """The state dict under the original keys. Raises ValueError for a network in segments."""
    refuse_unless("Latte", network.shape, segments=None)
    return give(_entries(network.shape), network)


def _entries(shape: VideoDiTConfig) -> list[Entry]:
    halves = ("spatial", "temporal")
    names: list[tuple[str, str, Role]] = [
        (f"blocks.{i // 2}.{halves[i % 2]}", f"blocks.{i}", "dense") for i in range(shape.num_layers)
    ]
    return [
        *outer_entries(shape.patch_size, has_labels=shape.num_classes > 0), *table("frame_positions", "temp_embed"),
        *all_blocks(names),
    ]
