"""The original checkpoints of MicroDiT (arXiv 2407.15811)."""

from collections.abc import Mapping
from typing import Any

from mezzotint.dit.checkpoints.keys import Entry, give, linear, patch_linear, same, table, take
from mezzotint.dit.micro_config import MicroBlockShape, MicroDiTConfig
from mezzotint.dit.microdit import MicroDiT

DEFAULTS: dict[str, Any] = {
    "input_size": 32, "patch_size": 2, "in_channels": 4, "dim": 1152, "depth": 28, "head_dim": 64, "multiple_of": 256,
    "caption_channels": 1024, "pos_interp_scale": 1.0, "norm_eps": 1e-6, "depth_init": True, "qkv_multipliers": [1.0],
    "ffn_multipliers": [4.0], "use_patch_mixer": True, "patch_mixer_depth": 4, "patch_mixer_dim": 512,
    "patch_mixer_qkv_ratio": 1.0, "patch_mixer_mlp_ratio": 1.0, "use_bias": False, "num_experts": 8,
    "expert_capacity": 2.0, "experts_every_n": 2,
}
"""The settings as the published networks take them where a configuration leaves one out."""

_BUILT_IN = {"norm_eps": 1e-6, "use_bias": False}


def from_microdit(config: Mapping[str, Any], state: Mapping[str, Any]) -> MicroDiT:
    """The network of an original configuration and state dict. Raises ValueError where the two do not fit."""
    settings = _settings(config)
    return take(lambda: MicroDiT(**settings), entries(MicroDiTConfig(**settings)), state)


def to_microdit(network: MicroDiT) -> dict[str, Any]:
    """The state dict under the original keys."""
    return give(entries(network.shape), network)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' settings under our names."""
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"config has {', '.join(unknown)}; for microdit it must have only the settings {', '.join(DEFAULTS)}."
        )
    whole = {**DEFAULTS, **config}
    for name, value in _BUILT_IN.items():
        if whole[name] != value:
            raise ValueError(f"{name} is {whole[name]!r}; it must be {value!r}, as in the published networks.")
    return {
        "sample_size": whole["input_size"], "patch_size": whole["patch_size"], "in_channels": whole["in_channels"],
        "hidden_size": whole["dim"], "num_layers": whole["depth"], "head_dim": whole["head_dim"],
        "attention_ratio": _each_layer("qkv_multipliers", whole), "mlp_ratio": _each_layer("ffn_multipliers", whole),
        "mlp_multiple": whole["multiple_of"],
        "mixer_layers": whole["patch_mixer_depth"] if whole["use_patch_mixer"] else 0,
        "mixer_size": whole["patch_mixer_dim"], "mixer_attention_ratio": whole["patch_mixer_qkv_ratio"],
        "mixer_mlp_ratio": whole["patch_mixer_mlp_ratio"], "num_experts": whole["num_experts"],
        "expert_capacity": whole["expert_capacity"], "experts_every": whole["experts_every_n"],
        "text_size": whole["caption_channels"], "position_scale": whole["pos_interp_scale"],
    }


def _each_layer(name: str, config: Mapping[str, Any]) -> tuple[float, ...]:
    """Fewer multipliers than layers stand for parts of equal depth."""
    multipliers, depth = [float(number) for number in config[name]], config["depth"]
    if not multipliers or depth % len(multipliers):
        raise ValueError(f"{name} has {len(multipliers)} numbers; their count must divide depth, {depth}.")
    return tuple(number for number in multipliers for _ in range(depth // len(multipliers)))


def entries(shape: MicroDiTConfig) -> list[Entry]:
    """All tensors, buffers too."""
    blocks = [("blocks", "blocks", shape.block_shapes), ("mixer", "patch_mixer", shape.mixer_shapes)]
    return [
        *table("positions", "pos_embed"),
        Entry(
            ours="mask_token", theirs=("mask_token",), join=lambda t: t[0][0, 0], split=lambda t: [t[None, None]]
        ),
        *patch_linear("patch_embed", "x_embedder.proj", shape.patch_size),
        *linear("time_embed.fc1", "t_embedder.mlp.0"), *linear("time_embed.fc2", "t_embedder.mlp.2"),
        *_text_entries(),
        *_mixer_maps(shape),
        *(
            entry for ours, theirs, shapes in blocks for i, block in enumerate(shapes)
            for entry in _block(f"{ours}.{i}", f"{theirs}.{i}", block)
        ),
        *same("final.norm.weight", "final_layer.norm_final.weight"),
        *linear("final.modulation", "final_layer.adaLN_modulation.1"), *linear("final.linear", "final_layer.linear"),
    ]


def _weights(names: Mapping[str, str], ours: str, theirs: str) -> list[Entry]:
    """Weights without biases."""
    return [
        entry for our, their in names.items() for entry in same(f"{ours}.{our}.weight", f"{theirs}.{their}.weight")
    ]


_SWIGLU = {"mlp.gate": "mlp.w1", "mlp.fc1": "mlp.w2", "mlp.fc2": "mlp.w3"}
_ATTENTION = {"attn.qkv": "attn.qkv", "attn.proj": "attn.proj"}


def _text_entries() -> list[Entry]:
    embeds = {"text_embed": "y_embedder.y_proj", "pooled_embed": "pooled_y_emb_process"}
    projections = [
        entry for ours, theirs in embeds.items()
        for entry in (
            *linear(f"{ours}.fc1", f"{theirs}.fc1"), *same(f"{ours}.norm.weight", f"{theirs}.norm.weight"),
            *linear(f"{ours}.fc2", f"{theirs}.fc2"),
        )
    ]
    block = {"norm1": "norm1", "norm2": "norm2", **_ATTENTION, **_SWIGLU}
    return projections + _weights(block, "text_block", "y_emb_preprocess")


def _mixer_maps(shape: MicroDiTConfig) -> list[Entry]:
    if not shape.mixer_layers or shape.mixer_size == shape.hidden_size:
        return []
    maps = {"mixer_in": "xin", "mixer_out": "xout", "mixer_text": "y"}
    return [
        entry for ours, theirs in maps.items()
        for entry in _weights({"norm": "0", "linear": "1"}, ours, f"patch_mixer_map_{theirs}")
    ]


def _block(ours: str, theirs: str, shape: MicroBlockShape) -> list[Entry]:
    names = {
        "norm1": "norm1", "cross_norm": "norm2", "norm2": "norm3", **_ATTENTION, "cross.q": "cross_attn.q_linear",
        "cross.kv": "cross_attn.kv_linear", "cross.proj": "cross_attn.proj",
    }
    names |= {"mlp.gate": "mlp.gate"} if shape.num_experts else _SWIGLU
    experts = ("mlp.w1", "mlp.w2") if shape.num_experts else ()
    return [
        *_weights(names, ours, theirs),
        *(entry for name in experts for entry in same(f"{ours}.{name}", f"{theirs}.{name}")),
        *linear(f"{ours}.modulation", f"{theirs}.adaLN_modulation.1"),
    ]
