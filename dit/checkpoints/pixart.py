"""diffusers' PixArtTransformer2DModel, there and back."""

from collections.abc import Mapping
from typing import Any

from mezzotint.dit.checkpoints.diffusers_blocks import block_entries
from mezzotint.dit.checkpoints.keys import Entry, give, linear, patch_linear, refuse_unless, same, stacked, take
from mezzotint.dit.diffusers_settings import PIXART, complete, read_shape
from mezzotint.dit.latent_config import PixArtConfig
from mezzotint.dit.pixart import PixArt

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "cross_attention_dim": 1152, "sample_size": 128, "patch_size": 2, "interpolation_scale": None,
    "use_additional_conditions": None, "caption_channels": None, "num_embeds_ada_norm": 1000,
}
DEMANDED: dict[str, Any] = {
    "attention_bias": True, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False, "norm_eps": 1e-6, "upcast_attention": False, "dropout": 0.0,
    "attention_type": "default",
}
"""Settings that our network has built in."""


def from_diffusers_pixart(config: Mapping[str, Any], state: Mapping[str, Any]) -> PixArt:
    """The network of a config.json and its tensors. Raises ValueError naming what of the two does not fit."""
    whole = complete(config, DEFAULTS, DEMANDED)
    size = whole["num_attention_heads"] * whole["attention_head_dim"]
    if whole["cross_attention_dim"] != size:
        raise ValueError(f"cross_attention_dim is {whole['cross_attention_dim']}; it must be the hidden size, {size}.")
    if whole["caption_channels"] is None:
        raise ValueError("caption_channels is None; it must be the width of a text token, as in PixArt's checkpoints.")
    conditions, scale = whole["use_additional_conditions"], whole["interpolation_scale"]
    settings = read_shape(whole) | {
        "text_size": whole["caption_channels"],
        "size_conditions": whole["sample_size"] == 128 if conditions is None else conditions,
        "position_scale": max(whole["sample_size"] // 64, 1) if scale is None else scale,
    }
    network = take(lambda: PixArt(**settings), _entries(PixArtConfig(**settings)), state)
    network.reset_positions()  # they are no part of the file
    return network


def to_diffusers_pixart(network: PixArt) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and tensors. Raises ValueError for what PixArtTransformer2DModel cannot be."""
    shape = network.shape
    refuse_unless(PIXART, shape, segments=None, mlp_ratio=4)
    config = {
        "num_attention_heads": shape.num_heads, "attention_head_dim": shape.head_dim, "in_channels": shape.in_channels,
        "out_channels": shape.out_channels, "num_layers": shape.num_layers, "sample_size": shape.sample_size,
        "cross_attention_dim": shape.hidden_size, "patch_size": shape.patch_size,
        "interpolation_scale": shape.position_scale, "use_additional_conditions": shape.size_conditions,
        "caption_channels": shape.text_size,
    }
    return DEMANDED | config, give(_entries(shape), network)


def _entries(shape: PixArtConfig) -> list[Entry]:
    embeddings = {"time_embed": "timestep_embedder"}
    if shape.size_conditions:
        embeddings |= {"size_embed": "resolution_embedder", "aspect_embed": "aspect_ratio_embedder"}
    blocks = [entry for i in range(shape.num_layers) for entry in _block(f"blocks.{i}", f"transformer_blocks.{i}")]
    return [
        *patch_linear("patch_embed", "pos_embed.proj", shape.patch_size),
        *(entry for ours, theirs in embeddings.items() for entry in _pair(ours, f"adaln_single.emb.{theirs}")),
        *linear("modulation", "adaln_single.linear"),
        *_pair("text_embed", "caption_projection"),
        *blocks,
        *same("final.table", "scale_shift_table"),
        *linear("final.linear", "proj_out"),
    ]


def _pair(ours: str, theirs: str) -> list[Entry]:
    """Two Linears, one after the other."""
    return linear(f"{ours}.fc1", f"{theirs}.linear_1") + linear(f"{ours}.fc2", f"{theirs}.linear_2")


def _block(ours: str, theirs: str) -> list[Entry]:
    return [
        *block_entries(ours, theirs),
        *same(f"{ours}.table", f"{theirs}.scale_shift_table"),
        *linear(f"{ours}.cross.q", f"{theirs}.attn2.to_q"),
        *stacked(f"{ours}.cross.kv", [f"{theirs}.attn2.to_{part}" for part in "kv"]),
        *linear(f"{ours}.cross.proj", f"{theirs}.attn2.to_out.0"),
    ]
