"""The configuration of an original MicroDiT checkpoint, read off its shapes."""

from collections.abc import Mapping
from math import asin, isqrt
from typing import Any

from torch import Tensor

from mezzotint.dit.micro_config import TEXT_MLP_RATIO

HEADS = {512: 16, 1024: 16}
"""Heads by hidden size in the published networks; no tensor tells them."""

PUBLISHED_CAPACITY = 2.0
"""Of all published networks; no tensor tells it either."""

_LARGEST_MULTIPLE = 256


def is_microdit(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys that only MicroDiT has are there, with those that its configuration is read off."""
    needed = (
        "pos_embed", "mask_token", "x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight",
        "y_emb_preprocess.mlp.w1.weight", "blocks.0.attn.qkv.weight",
    )
    return all(name in state for name in needed) and all(len(state[name].shape) > 1 for name in needed)


def microdit_settings(state: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """The authors' settings. num_heads: of the backbone at full width; None takes that of the published size.

    Raises ValueError where the number of heads has to be given.
    """
    dim, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    if num_heads is None and dim not in HEADS:
        raise ValueError(
            f"the checkpoint is {dim} wide, and no published MicroDiT of that width tells its number of heads; give it."
        )
    backbone, mixer = _blocks(state, "blocks"), _blocks(state, "patch_mixer")
    experts = [i for i, block in enumerate(backbone) if f"{block}.mlp.gate.weight" in state]
    return {
        "input_size": isqrt(state["pos_embed"].shape[1]) * patch_size, "patch_size": patch_size,
        "in_channels": in_channels, "dim": dim, "depth": len(backbone), "head_dim": dim // (num_heads or HEADS[dim]),
        "multiple_of": _multiple(state, dim, backbone + mixer),
        "caption_channels": state["y_embedder.y_proj.fc1.weight"].shape[1],
        "pos_interp_scale": _position_scale(state["pos_embed"]),
        "qkv_multipliers": [_attention_ratio(state, block) for block in backbone],
        "ffn_multipliers": [_mlp_ratio(state, block) for block in backbone],
        "use_patch_mixer": bool(mixer), "patch_mixer_depth": len(mixer), "expert_capacity": PUBLISHED_CAPACITY,
        "num_experts": len(state[f"{backbone[experts[0]]}.mlp.w1"]) if experts else 0,
        "experts_every_n": experts[0] + 1 if experts else 1,
    } | (_mixer_settings(state, mixer) if mixer else {})


def _blocks(state: Mapping[str, Tensor], prefix: str) -> list[str]:
    numbers = {int(name.split(".")[1]) for name in state if name.startswith(f"{prefix}.")}
    return [f"{prefix}.{i}" for i in sorted(numbers)]


def _mixer_settings(state: Mapping[str, Tensor], blocks: list[str]) -> dict[str, Any]:
    with_experts = [block for block in blocks if f"{block}.mlp.gate.weight" in state]
    return {
        "patch_mixer_dim": len(state[f"{blocks[0]}.norm1.weight"]),
        "patch_mixer_qkv_ratio": _attention_ratio(state, blocks[0]),
        # Experts are as wide as the ratio says; dense feed-forwards are two thirds of it, which is less sharp.
        "patch_mixer_mlp_ratio": _mlp_ratio(state, (with_experts or blocks)[0]),
    }


def _attention_ratio(state: Mapping[str, Tensor], block: str) -> float:
    size, width = state[f"{block}.attn.proj.weight"].shape
    return width / size


def _mlp_ratio(state: Mapping[str, Tensor], block: str) -> float:
    """One that gives the block's feed-forward again; half a channel more, so that no rounding takes one away."""
    size, hidden = len(state[f"{block}.norm1.weight"]), _hidden(state, block)
    wanted = hidden if f"{block}.mlp.gate.weight" in state else (3 * hidden + 1) // 2
    return (wanted + 0.5) / size if wanted % size else wanted / size


def _hidden(state: Mapping[str, Tensor], block: str) -> int:
    if f"{block}.mlp.gate.weight" in state:
        return state[f"{block}.mlp.w1"].shape[2]
    return len(state[f"{block}.mlp.w1.weight"])


def _multiple(state: Mapping[str, Tensor], dim: int, blocks: list[str]) -> int:
    """The largest power of two that all feed-forward widths are multiples of, and that gives the text block's."""
    text = len(state["y_emb_preprocess.mlp.w1.weight"])
    asked = 2 * int(dim * TEXT_MLP_RATIO) // 3
    widths = [_hidden(state, block) for block in blocks] + [text]
    multiple = _LARGEST_MULTIPLE
    while multiple > 1 and (any(width % multiple for width in widths) or -(-asked // multiple) * multiple != text):
        multiple //= 2
    return multiple


def _position_scale(positions: Tensor) -> float:
    """The first channel of the second token is the sine of one over the scale."""
    sine = float(positions[0, 1, 0])
    return round(1 / asin(sine), 1) if 0 < sine <= 1 else 1.0
