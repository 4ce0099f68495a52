"""What kind of original checkpoint a state dict is, and its configuration, read off its keys and shapes."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from mezzotint.dit.checkpoints.guess_microdit import is_microdit, microdit_settings
from mezzotint.dit.checkpoints.latte import CLASSES, UNCONDITIONAL

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads by hidden size in the published DiTs and Lattes; no tensor tells them."""


def guess_original(state: Mapping[str, Tensor], num_heads: int | None = None) -> tuple[str, dict[str, Any]]:
    """Kind and configuration for `from_original`. num_heads: None takes that of the published size.

    Raises ValueError where the tensors are of no kind we know, or the number of heads has to be given.
    """
    if is_microdit(state):
        return "microdit", microdit_settings(state, num_heads)
    needed = ("x_embedder.proj.weight", "pos_embed", "final_layer.linear.weight")
    if any(name.startswith("dumbbell_blocks.") for name in state):
        raise ValueError("the checkpoint is a SparseDiT; it is in segments already, and only a dense one can be cut.")
    if not all(name in state for name in needed) or "blocks.0.mlp.fc1.weight" not in state:
        raise ValueError(
            "the checkpoint is neither a DiT nor a Latte nor a MicroDiT; it must hold the keys of one, such as "
            f"{', '.join(needed)} and blocks.0.mlp.fc1.weight."
        )
    kind = "latte" if "temp_embed" in state else "dit"
    config = _sizes(state) | {"num_heads": num_heads or _published_heads(state)}
    labels = state.get("y_embedder.embedding_table.weight")
    config["num_classes"] = 0 if labels is None else len(labels) - 1
    if kind == "latte":
        extras = UNCONDITIONAL if labels is None else CLASSES
        config |= {"num_frames": state["temp_embed"].shape[1], "extras": extras}
    return kind, config


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    outputs = len(state["final_layer.linear.weight"]) // patch_size**2
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return {
        "input_size": isqrt(state["pos_embed"].shape[1]) * patch_size, "patch_size": patch_size,
        "in_channels": in_channels, "hidden_size": hidden_size, "depth": len(blocks),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / hidden_size, "learn_sigma": outputs == 2 * in_channels,
    }


def _published_heads(state: Mapping[str, Tensor]) -> int:
    hidden_size = len(state["x_embedder.proj.weight"])
    if hidden_size not in HEADS:
        raise ValueError(
            f"the checkpoint is {hidden_size} wide, and no published network of that width tells its number of heads; "
            "give it."
        )
    return HEADS[hidden_size]
