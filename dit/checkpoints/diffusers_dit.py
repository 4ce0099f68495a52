"""diffusers' DiTTransformer2DModel, there and back.

Its time frequencies and one of its norms differ a little from DiT's own, and each of its blocks holds the embeddings of
time and label by itself. Where all copies are equal (as in converted checkpoints) ours keeps one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mezzotint.dit.checkpoints.diffusers_blocks import block_entries
from mezzotint.dit.checkpoints.keys import Entry, copies, give, linear, patch_linear, refuse_unless, same, take
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.diffusers_settings import DIT, DIT_DEMANDED, dit_settings
from mezzotint.dit.latent_config import ClassDiTConfig


def from_diffusers_dit(config: Mapping[str, Any], state: Mapping[str, Any]) -> ClassDiT:
    """The network of a config.json and its tensors. Raises ValueError naming what of the two does not fit."""
    settings = dit_settings(config)
    settings["condition_per_block"] = not _copies_are_equal(state, settings["num_layers"])
    network = take(lambda: ClassDiT(**settings), _entries(ClassDiTConfig(**settings)), state)
    network.reset_positions()  # they are no part of the file
    return network


def to_diffusers_dit(network: ClassDiT) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and tensors. Raises ValueError for what DiTTransformer2DModel cannot be."""
    shape = network.shape
    refuse_unless(DIT, shape, segments=None, frequency_shift=1, mlp_ratio=4, null_class=True)
    config = {
        "num_attention_heads": shape.num_heads, "attention_head_dim": shape.head_dim, "in_channels": shape.in_channels,
        "out_channels": shape.out_channels, "num_layers": shape.num_layers, "sample_size": shape.sample_size,
        "patch_size": shape.patch_size, "num_embeds_ada_norm": shape.num_classes, "norm_eps": shape.mlp_norm_eps,
    }
    return DIT_DEMANDED | config, give(_entries(shape), network)


def _entries(shape: ClassDiTConfig) -> list[Entry]:
    blocks = range(shape.num_layers)
    return [
        *patch_linear("patch_embed", "pos_embed.proj", shape.patch_size),
        *_condition_entries(shape, [f"transformer_blocks.{i}.norm1.emb." for i in blocks]),
        *(entry for i in blocks for entry in block_entries(f"blocks.{i}", f"transformer_blocks.{i}")),
        *(entry for i in blocks for entry in linear(f"blocks.{i}.modulation", f"transformer_blocks.{i}.norm1.linear")),
        *linear("final.modulation", "proj_out_1"),
        *linear("final.linear", "proj_out_2"),
    ]


def _condition_entries(shape: ClassDiTConfig, prefixes: Sequence[str]) -> list[Entry]:
    if shape.condition_per_block:
        return [entry for i, prefix in enumerate(prefixes) for entry in copies(_condition(i), [prefix])]
    return copies(_condition(0), prefixes)


def _condition(index: int) -> list[Entry]:
    ours = f"conditions.{index}"
    return [
        *linear(f"{ours}.time_embed.fc1", "timestep_embedder.linear_1"),
        *linear(f"{ours}.time_embed.fc2", "timestep_embedder.linear_2"),
        *same(f"{ours}.label_embed.weight", "class_embedder.embedding_table.weight"),
    ]


def _copies_are_equal(state: Mapping[str, Any], num_layers: int) -> bool:
    """Whether all blocks embed time and label alike; a key that is not there is for `take` to name."""
    for name in (theirs for entry in _condition(0) for theirs in entry.theirs):
        tensors = [state.get(f"transformer_blocks.{i}.norm1.emb.{name}") for i in range(num_layers)]
        held = [tensor for tensor in tensors if tensor is not None]
        if not all(torch.equal(held[0], tensor) for tensor in held[1:]):
            return False
    return True
