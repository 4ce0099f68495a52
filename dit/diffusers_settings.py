"""The settings of diffusers' DiTTransformer2DModel and PixArtTransformer2DModel under our names. No torch here."""

from collections.abc import Mapping
from typing import Any

DIT = "DiTTransformer2DModel"
PIXART = "PixArtTransformer2DModel"

_OLD = "Transformer2DModel"
_OLD_NAMES = {"ada_norm_zero": DIT, "ada_norm_single": PIXART}
"""Both were once one class, as the published folders still say; its norm_type tells which."""
_OLD_SETTINGS: dict[str, Any] = {
    "cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False,
    "only_cross_attention": False, "double_self_attention": False, "attention_type": "default",
    "caption_channels": None, "interpolation_scale": None, "use_additional_conditions": None,
}
"""What that class could do besides, with the values that a DiT has."""
_UNUSED = ("norm_num_groups",)
"""Settings that are taken and never read."""

DIT_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000, "norm_eps": 1e-5,
}
DIT_DEMANDED: dict[str, Any] = {
    "attention_bias": True, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False, "upcast_attention": False, "dropout": 0.0,
}
"""Settings that our network has built in."""


def diffusers_class(config: Mapping[str, Any]) -> str | None:
    """The class that a config.json is for by its name of today; None where it does not say."""
    name = config.get("_class_name")
    return _OLD_NAMES.get(config.get("norm_type", ""), name) if name == _OLD else name


def dit_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `ClassDiTConfig` that compute what a DiTTransformer2DModel of this config.json does.

    Whether its blocks share one embedding of time and label is left to who knows the weights. Raises ValueError
    naming what our network cannot be.
    """
    whole = complete(config, DIT_DEFAULTS, DIT_DEMANDED)
    return read_shape(whole) | {
        "num_classes": whole["num_embeds_ada_norm"], "frequency_shift": 1, "mlp_norm_eps": whole["norm_eps"],
    }


def complete(config: Mapping[str, Any], defaults: Mapping[str, Any], demanded: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with its defaults, without what diffusers notes for itself (`_class_name`).

    demanded: what our network has built in. Raises ValueError that names every setting with another value, and every
    one that is not known.
    """
    if config.get("_class_name") == _OLD:
        demanded = {name: value for name, value in _OLD_SETTINGS.items() if name not in defaults} | dict(demanded)
    settings = {name: value for name, value in config.items() if not name.startswith("_") and name not in _UNUSED}
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
