"""Names to loaded models, with the fingerprint that says which weights they are."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch

from mezzotint.sampling.catalog import ModelCard, find_model
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.text import TextEncoder

MAX_LOADED = 2
"""Models kept in memory; the one used longest ago goes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A pipeline on its device, and the first 16 hex digits of the SHA-256 over its configuration and weights."""

    pipeline: Pipeline
    fingerprint: str


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
            held = LoadedModel(pipeline=self._load(name), fingerprint=print_now)
        self._loaded[name] = held
        while len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return held

    def _load(self, name: str) -> Pipeline:
        pipeline = Pipeline.from_pretrained(name, dtype=self.dtype).to(self.device)
        # Loaded here, so that the first drawing is not the slower for it.
        pipeline.use_text_encoder(TextEncoder(pipeline.config.text_encoder_name, self.device))
        return pipeline


def fingerprint(card: ModelCard) -> str:
    """Which weights and configuration a model folder holds."""
    digest = hashlib.sha256()
    folder = card.folder / "transformer"
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
