"""Which models there are, read from their folders' JSON without loading a weight. No torch here."""

import os
from pathlib import Path

from mezzotint.sampling.class_labels import Classes
from mezzotint.sampling.model_folder import ModelCard, read_card
from mezzotint.sampling.request import RequestError

__all__ = ["Classes", "ModelCard", "find_model", "model_names", "models_folder", "shipped_names"]

SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "mezzotint" / "models"
if not SHIPPED_MODELS.is_dir():  # an installed wheel puts this file at mezzotint/sampling/
    SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models"


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
    return read_card(name, folder)


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
