"""A model that can be described without being loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mezzotint.sampling.catalog import ModelCard, find_model

if TYPE_CHECKING:
    from mezzotint.sampling.pipeline import Pipeline


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


@pytest.fixture(scope="session")
def cut_pipeline() -> "Pipeline":
    """Random weights in segments: 32 x 32 pixels, 8 x 8 tokens, guidance 2."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from mezzotint.dit.model import DiT
    from mezzotint.sampling.pipeline import Pipeline

    torch.manual_seed(0)
    network = DiT(
        sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=8, num_heads=2,
        segments="1 + 2x[1,1,1,0] + 1",
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Pipeline(network, FlowMatchEulerDiscreteScheduler(), guidance_scale=2.0)
