"""Names to loaded models, with the fingerprint that says which weights they are."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mezzotint.sampling.catalog import ModelCard, find_model
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.text import TextEncoder

if TYPE_CHECKING:
    from mezzotint.sampling.class_pipeline import ClassPipeline

MAX_LOADED = 2
"""Models kept in memory; the one used longest ago goes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A pipeline on its device, and the first 16 hex digits of the SHA-256 over its configuration and weights."""

    pipeline: "Pipeline | ClassPipeline"
    fingerprint: str

    @property
    def text_pipeline(self) -> Pipeline:
        """The pipeline of a model that is known to draw by text (see `ModelCard.text_config`)."""
        assert isinstance(self.pipeline, Pipeline)
        return self.pipeline


class Hub:
    """Keeps the models used last."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()

    def get(self, name: str) -> LoadedModel:
        """Load a model, or hand out the loaded one. Raises RequestError (field "model") when there is none.

        A folder whose weights were replaced since is loaded anew.
        """
        card = find_model(name)
        print_now = fingerprint(card)
        held = self._loaded.pop(name, None)
        if held is None or held.fingerprint != print_now:
            held = LoadedModel(pipeline=self._load(card), fingerprint=print_now)
        self._loaded[name] = held
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return held

    def _load(self, card: ModelCard) -> "Pipeline | ClassPipeline":
        if card.classes is not None:
            # Here, since a drawing by text would pay for its imports, too.
            from mezzotint.sampling.class_pipeline import ClassPipeline

            return ClassPipeline.from_pretrained(card.name, dtype=self.dtype).to(self.device)
        pipeline = Pipeline.from_pretrained(card.name, dtype=self.dtype).to(self.device)
        # Loaded here, so that the first drawing is not the slower for it.
        pipeline.use_text_encoder(TextEncoder(pipeline.config.text_encoder_name, self.device))
        return pipeline


def fingerprint(card: ModelCard) -> str:
    """Which weights and configuration a model folder holds."""
    digest = hashlib.sha256()
    for path in _files(card):
        state = path.stat()
        digest.update(_file_digest(path, state.st_ino, state.st_size, state.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=64)
def _file_digest(path: Path, *state: int) -> bytes:
    """Once for each state of a file: the weights of a large network take seconds to read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files(card: ModelCard) -> list[Path]:
    """What makes a picture what it is. Of a class-conditional model also its autoencoder and its scheduler."""
    folders = [card.folder / "transformer", *([] if card.classes is None else [card.folder / "vae"])]
    patterns = ("*.safetensors",) if card.classes is None else ("*.safetensors", "*.bin")
    found = [
        path for folder in folders
        for path in (folder / "config.json", *(file for pattern in patterns for file in sorted(folder.glob(pattern))))
    ]
    return found if card.classes is None else [*found, card.folder / "scheduler" / "scheduler_config.json"]
