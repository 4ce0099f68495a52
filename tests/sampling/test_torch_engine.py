"""The engine that draws with a network: progress, cancel, the models it keeps, and what it reports."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mezzotint.dit.model import DiT
from mezzotint.sampling.engine import Cancelled, Progress
from mezzotint.sampling.hub import MAX_LOADED
from mezzotint.sampling.intake import accept
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.request import GenerateRequest, RequestError
from mezzotint.sampling.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine("cpu", "fp32")


def request(model: Path, **fields: object) -> GenerateRequest:
    raw = {"prompt": "a cat", "model": str(model), "num_inference_steps": 4, "seed": 3}
    return accept(raw | fields)[0]


def test_it_draws_what_the_pipeline_draws_and_says_what_it_did(engine: TorchEngine, tiny_model: Path) -> None:
    asked = request(tiny_model, num_images=2)
    drawn = engine.draw(asked)
    alone = Pipeline.from_pretrained(str(tiny_model), dtype=engine.dtype)("a cat", seed=4, num_inference_steps=4)
    assert np.abs(np.asarray(drawn.images[1]).astype(int) - np.asarray(alone.images[0])).max() <= 1
    assert drawn.seeds == [3, 4]
    assert drawn.flops == accept(asked)[1].flops > 0
    assert (drawn.device, drawn.dtype) == ("cpu", "fp32")
    assert len(drawn.fingerprint) == 16
    assert set(drawn.seconds) == {"load", "sample"}


def test_the_density_of_a_request_reaches_the_network(engine: TorchEngine, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DiT(
        sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=5, num_heads=2,
        segments="1 + 1x[1,1,1,0] + 1",
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    Pipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "cut")
    full, fast = (engine.draw(request(tmp_path / "cut", density=density)) for density in (None, "fast"))
    assert full.flops > fast.flops > 0
    alone = Pipeline.from_pretrained(str(tmp_path / "cut"), dtype=engine.dtype)(
        "a cat", seed=3, num_inference_steps=4, density="fast"
    )
    assert np.abs(np.asarray(fast.images[0]).astype(int) - np.asarray(alone.images[0])).max() <= 1
    assert np.abs(np.asarray(fast.images[0]).astype(int) - np.asarray(full.images[0])).max() > 3


def test_progress_comes_after_every_step_with_a_preview(engine: TorchEngine, tiny_model: Path) -> None:
    seen: list[Progress] = []
    engine.draw(request(tiny_model), on_progress=seen.append)
    assert [(p.phase, p.step, p.num_steps) for p in seen] == [
        ("load", 0, 4), ("sample", 1, 4), ("sample", 2, 4), ("sample", 3, 4), ("sample", 4, 4)
    ]
    assert all(p.preview is not None and p.preview.size == (32, 32) for p in seen[1:])


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancel_stops_within_one_step(engine: TorchEngine, tiny_model: Path, after: int) -> None:
    steps: list[int] = []
    with pytest.raises(Cancelled):
        engine.draw(
            request(tiny_model), on_progress=lambda p: steps.append(p.step), cancelled=lambda: steps[-1] >= after
        )
    assert steps[-1] == after


def test_replaced_weights_are_loaded_anew(tiny_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine("cpu", "fp32")
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = engine.draw(request(folder))
    pipeline = Pipeline.from_pretrained(str(folder), dtype=engine.dtype)
    pipeline.transformer.final.linear.bias.data += 0.5
    pipeline.transformer.save_pretrained(folder / "transformer")
    after = engine.draw(request(folder))
    assert after.fingerprint != before.fingerprint
    assert np.asarray(after.images[0]).mean() > np.asarray(before.images[0]).mean() + 20


def test_only_the_models_used_last_stay_loaded(tiny_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine("cpu", "fp32")
    for i in range(MAX_LOADED + 1):
        shutil.copytree(tiny_model, tmp_path / str(i))
        engine.draw(request(tmp_path / str(i), num_inference_steps=1))
    assert list(engine.hub._loaded) == [str(tmp_path / str(i)) for i in range(1, MAX_LOADED + 1)]


def test_a_device_or_dtype_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match="dtype is 'int3'"):
        TorchEngine("cpu", "int3")
    with pytest.raises(RequestError, match="device is 'toaster'"):
        TorchEngine("toaster")
