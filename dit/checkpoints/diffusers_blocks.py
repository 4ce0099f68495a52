"""What diffusers' DiTTransformer2DModel and PixArtTransformer2DModel write alike."""

from collections.abc import Mapping
from typing import Any

from mezzotint.dit.checkpoints.keys import Entry, linear, stacked

UNUSED = ("norm_num_groups",)
"""Settings that both take and never read."""


def complete(config: Mapping[str, Any], defaults: Mapping[str, Any], demanded: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with its defaults, without what diffusers notes for itself (`_class_name`).

    demanded: what our network has built in. Raises ValueError that names every setting with another value, and every
    one that is not known.
    """
    settings = {name: value for name, value in config.items() if not name.startswith("_") and name not in UNUSED}
    whole = {**defaults, **demanded, **settings}
    wrong = [f"{name} is {whole[name]!r} and not {value!r}" for name, value in demanded.items() if whole[name] != value]
    wrong += [f"{name} is not known" for name in settings if name not in defaults and name not in demanded]
    if wrong:
        raise ValueError(f"the configuration is not one that our network can take: {'; '.join(wrong)}.")
    return whole


def read_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Their settings of size under our names. Raises ValueError where out_channels is neither one nor two times in."""
    channels, out = config["in_channels"], config["out_channels"] or config["in_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(f"out_channels is {out}; it must be in_channels {channels}, or twice as many for a variance.")
    return {
        "sample_size": config["sample_size"], "in_channels": channels, "patch_size": config["patch_size"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "num_layers": config["num_layers"], "num_heads": config["num_attention_heads"],
        "learn_sigma": out == 2 * channels,
    }


def block_entries(ours: str, theirs: str) -> list[Entry]:
    """Self-attention and feed-forward of one block."""
    return [
        *stacked(f"{ours}.attn.qkv", [f"{theirs}.attn1.to_{part}" for part in "qkv"]),
        *linear(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0"),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2"),
    ]
