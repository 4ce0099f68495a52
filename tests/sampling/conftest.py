"""A model that can be described without being loaded."""

import json
from pathlib import Path

import pytest

from mezzotint.sampling.catalog import ModelCard, find_model


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the person's own models."""
    folder = tmp_path / "own models"
    monkeypatch.setenv("MEZZOTINT_MODELS_DIR", str(folder))
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The JSON of a small model: 64 x 64 pixels in patches of 16, guidance 2.5, 12 steps. No weights."""
    folder = tmp_path / "tiny"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"guidance_scale": 2.5, "num_inference_steps": 12}))
    config = {"_class_name": "DiT", "sample_size": 64, "patch_size": 16, "hidden_size": 64, "num_heads": 2}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def card(model_folder: Path) -> ModelCard:
    return find_model(str(model_folder))
