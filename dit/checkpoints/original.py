"""What the original implementations of DiT, SparseDiT and Latte write alike: settings and keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.dit.checkpoints.keys import Entry, linear, patch_linear, same, table
from mezzotint.dit.segment_layout import Role

DEFAULTS: dict[str, Any] = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16,
    "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": True,
}
"""The settings that all three know, as they take them where a configuration leaves one out."""


def complete(kind: str, config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration; `more` are the settings of this kind alone. Raises ValueError naming unknown ones."""
    known = {**DEFAULTS, **more}
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(
            f"config has {', '.join(unknown)}; for {kind} it must have only the settings {', '.join(known)}."
        )
    return {**known, **config}


def shared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' settings under our names."""
    return {
        "sample_size": config["input_size"], "patch_size": config["patch_size"], "in_channels": config["in_channels"],
        "hidden_size": config["hidden_size"], "num_layers": config["depth"], "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"], "learn_sigma": config["learn_sigma"],
    }


def outer_entries(patch_size: int, has_labels: bool) -> list[Entry]:
    """Everything around the blocks."""
    labels = same("conditions.0.label_embed.weight", "y_embedder.embedding_table.weight") if has_labels else []
    return [
        *table("positions", "pos_embed"),
        *patch_linear("patch_embed", "x_embedder.proj", patch_size),
        *linear("conditions.0.time_embed.fc1", "t_embedder.mlp.0"),
        *linear("conditions.0.time_embed.fc2", "t_embedder.mlp.2"),
        *labels,
        *linear("final.modulation", "final_layer.adaLN_modulation.1"),
        *linear("final.linear", "final_layer.linear"),
    ]


def block_entries(ours: str, theirs: str, role: Role = "dense") -> list[Entry]:
    """One block; what it attends with depends on its role."""
    parts = {"pool": ["v"], "generation": ["q", "kv"], "recovery": ["q", "kv"]}.get(role, ["qkv"])
    names = {f"attn.{part}": f"attn.{part}" for part in (*parts, "proj")}
    names |= {"modulation": "adaLN_modulation.1", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    if role == "recovery":
        names |= {"merge.from_sparse": "merged_layer1", "merge.from_dense": "merged_layer2"}
    return [entry for our, their in names.items() for entry in linear(f"{ours}.{our}", f"{theirs}.{their}")]


def all_blocks(names: Sequence[tuple[str, str, Role]]) -> list[Entry]:
    """names: (ours, theirs, role) of each block."""
    return [entry for ours, theirs, role in names for entry in block_entries(ours, theirs, role)]
