"""The key layouts that adapters for FLUX come in, as pairs of matrices by diffusers' module names.

diffusers converts kohya's and XLabs' names (FluxLoraLoaderMixin.lora_state_dict); what it would drop without a word, or
would never end with, is refused before.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mezzotint.sampling.adapter_card import MAX_ALPHA
from mezzotint.sampling.adapters import DOWN, PREFIX, UP, pairs_of
from mezzotint.sampling.safetensors_header import refuse

KeyLayout = Literal["peft", "kohya", "xlabs"]
"""peft is what diffusers, PEFT, ai-toolkit and we write."""

_KOHYA = re.compile(r"lora_unet_[a-z0-9_A-Z]+\.(lora_down\.weight|lora_up\.weight|alpha)")
_XLABS = re.compile(
    r"(diffusion_model\.)?(double|single)_blocks\.\d{1,2}\.processor\.(qkv|proj)_lora[12]?\.(down|up)\.weight"
)
_PEFT_METADATA = "lora_adapter_metadata"


def key_layout(keys: Mapping[str, object], path: Path) -> KeyLayout:
    """Which layout a file's keys are in. Raises AdapterFileError naming a key that belongs to none."""
    if any(".lora_down." in key for key in keys):
        layout, belongs = "kohya", _KOHYA.fullmatch
    elif any(".processor." in key for key in keys):
        layout, belongs = "xlabs", _XLABS.fullmatch
    else:
        layout, belongs = "peft", re.compile(rf"{re.escape(PREFIX)}.+({re.escape(DOWN)}|{re.escape(UP)})").fullmatch
    strange = next((key for key in keys if not belongs(key)), None)
    if strange is not None:
        refuse(path, f"holds {strange}, which the key layout {layout} has not; layers of a transformer in the layouts "
                     "of diffusers, PEFT, ai-toolkit, kohya and XLabs are read, and nothing of a text encoder")
    return layout  # type: ignore[return-value]  # one of the three words above


def flux_pairs(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices of an adapter for FLUX, with its alpha in them: their product counts as it is.

    Raises AdapterFileError for keys of no layout, for an alpha that makes no sense, and where diffusers cannot convert.
    """
    layout = key_layout(tensors, path)
    if layout == "peft":
        return {
            module: (down, _scaled(up, scale)) for module, (down, up) in pairs_of(tensors, path).items()
            for scale in [_peft_scale(metadata, down.shape[0], path)]
        }
    for key, tensor in tensors.items():
        if key.endswith(".alpha") and not (tensor.numel() == 1 and 0 < tensor.item() <= MAX_ALPHA):
            refuse(path, f"holds {key} as {tensor.flatten()[:3].tolist()}; it must be one number over 0, at most "
                         f"{MAX_ALPHA:g}")
    return pairs_of(_converted(dict(tensors), path), path)


def _converted(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    from diffusers.loaders import FluxLoraLoaderMixin

    try:
        converted: dict[str, Any] = FluxLoraLoaderMixin.lora_state_dict(tensors)
    except (ValueError, KeyError, IndexError, RuntimeError, TypeError, AttributeError, AssertionError):
        refuse(path, "cannot be converted by diffusers; its layers are not those of FLUX, or some are only half there")
    return {key if key.startswith(PREFIX) else PREFIX + key: tensor for key, tensor in converted.items()}


def _peft_scale(metadata: Mapping[str, str], rank: int, path: Path) -> float:
    """alpha / rank as diffusers writes it into the header; 1 where nothing is said."""
    if _PEFT_METADATA not in metadata:
        return 1.0
    try:
        given = json.loads(metadata[_PEFT_METADATA])
    except (ValueError, RecursionError):
        refuse(path, f"has {_PEFT_METADATA} that is not JSON")
    if not isinstance(given, dict):
        refuse(path, f"has {_PEFT_METADATA} that is no object")
    for name in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora"):
        if given.get(f"{PREFIX}{name}"):
            refuse(path, f"was trained with {name}, which is not read")
    alpha = given.get(f"{PREFIX}lora_alpha", rank)
    if type(alpha) not in (int, float) or not 0 < alpha <= MAX_ALPHA:
        refuse(path, f"says that lora_alpha is {str(alpha)[:40]}; it must be a number over 0, at most {MAX_ALPHA:g}")
    return alpha / rank


def _scaled(up: Tensor, scale: float) -> Tensor:
    return up if scale == 1 else (up.float() * scale).to(up.dtype)


def flux_skeleton() -> nn.Module:
    """The modules of FLUX.1 with the sides of their weights, and no weights: for `check_fit`."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)
