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

    guidance_scale and num_inference_steps are the defaults its makers measured to be best; time_shift is the
    scheduler's: t becomes shift * t / (1 + (shift - 1) * t).
    """

    name: str
    folder: Path
    config: DiTConfig
    guidance_scale: float
    num_inference_steps: int
    time_shift: float = 1.0


def models_folder() -> Path:
    """Where a person's own models lie: MEZZOTINT_MODELS_DIR, or models/ in the XDG data folder."""
    own = os.environ.get("MEZZOTINT_MODELS_DIR")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(own) if own else Path(data) / "mezzotint" / "models"


def model_names() -> list[str]:
    """Names of the models that come with the package, then of the person's own."""
    return shipped_names() + sorted(set(_names_in(models_folder())) - set(shipped_names()))


def _names_in(folder: Path) -> list[str]:
    return [p.parent.name for p in folder.glob("*/model_index.json")]


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(_names_in(SHIPPED_MODELS))


def find_model(name: str) -> ModelCard:
    """Describe a model by its name (see `model_names`), or by the path of a folder in diffusers' layout.

    Raises RequestError (field "model") when there is none, or when its files cannot be read.
    """
    folder = _folder_of(name)
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise RequestError("model", f"model is {name!r}; {index_file} is not there, and a model folder has "
                                    "one (make it with `mezzotint export`).")
    return _read_card(name, folder)


def _folder_of(name: str) -> Path:
    if name in shipped_names():
        return SHIPPED_MODELS / name
    if name in _names_in(models_folder()):
        return models_folder() / name
    if os.sep not in name and not Path(name).is_dir():
        listed = ", ".join(model_names()) or "none"
        raise RequestError("model", f"model is {name!r}; the models here are {listed}, "
                                    "or give the path of a model folder.")
    return Path(name)


def _read_card(name: str, folder: Path) -> ModelCard:
    index = _read_json(name, folder / "model_index.json")
    config = _read_json(name, folder / "transformer" / "config.json")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule = _read_json(name, scheduler) if scheduler.is_file() else {}
    try:
        return ModelCard(
            name=name,
            folder=folder,
            config=DiTConfig.from_mapping(config),
            guidance_scale=float(index.get("guidance_scale", 3.0)),
            num_inference_steps=int(index.get("num_inference_steps", 25)),
            time_shift=float(schedule.get("shift", 1.0)),
        )
    except (TypeError, ValueError) as error:
        reason = f"its configuration is not one of ours: {str(error).rstrip('.')}."
        raise RequestError("model", f"model is {name!r}; {reason}") from None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError("model", f"model is {name!r}; {path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError("model", f"model is {name!r}; {path} must hold a JSON object.")
    return value
