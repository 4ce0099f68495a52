"""Which models there are, read from their folders' JSON without loading a weight. No torch here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.dit.config import DiTConfig
from mezzotint.sampling.request import RequestError

SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "mezzotint" / "models"
if not SHIPPED_MODELS.is_dir():  # an installed wheel puts this file at mezzotint/sampling/
    SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What can be known of a model before it is loaded.

    guidance_scale and num_inference_steps are the defaults its makers measured to be best.
    """

    name: str
    folder: Path
    config: DiTConfig
    guidance_scale: float
    num_inference_steps: int


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in SHIPPED_MODELS.glob("*/model_index.json"))


def find_model(name: str) -> ModelCard:
    """Describe a model by its shipped name, or by the path of a folder in diffusers' layout.

    Raises RequestError (field "model") when there is none, or when its files cannot be read.
    """
    folder = SHIPPED_MODELS / name if name in shipped_names() else Path(name)
    if os.sep not in name and folder == Path(name) and not folder.is_dir():
        raise RequestError("model", f"model is {name!r}; the models here are {_listed()}, "
                                    "or give the path of a model folder.")
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise RequestError("model", f"model is {name!r}; {index_file} is not there, and a model folder has one "
                                    "(make it with `mezzotint export`).")
    return _read_card(name, folder)


def _listed() -> str:
    return ", ".join(shipped_names()) or "none"


def _read_card(name: str, folder: Path) -> ModelCard:
    index = _read_json(name, folder / "model_index.json")
    config = _read_json(name, folder / "transformer" / "config.json")
    try:
        return ModelCard(
            name=name,
            folder=folder,
            config=DiTConfig.from_mapping(config),
            guidance_scale=float(index.get("guidance_scale", 3.0)),
            num_inference_steps=int(index.get("num_inference_steps", 25)),
        )
    except (TypeError, ValueError) as error:
        raise RequestError("model", f"model is {name!r}; its configuration is not one of ours: {error}") from None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError("model", f"model is {name!r}; {path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError("model", f"model is {name!r}; {path} must hold a JSON object.")
    return value
