"""`mezzotint bench density`: its arguments, and the rows of a network small enough to time in a test."""

import json

import pytest
import torch
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.sampling import density_benchmark
from mezzotint.sampling.density_benchmark import measure_density


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--pixels", "300"], "--pixels is '300'; it must be 256, 512 or both"), (["--dtype", "int8"], "bf16 or fp32")],
)
def test_wrong_arguments_are_named(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "density", *arguments])
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """DiT of the published depth and 8 channels."""
    whole = density_benchmark.diffusers.DiTTransformer2DModel

    def small(**settings: object) -> object:
        return whole(**{**settings, "num_attention_heads": 2, "attention_head_dim": 4})

    monkeypatch.setattr(density_benchmark.diffusers, "DiTTransformer2DModel", small)


@pytest.mark.usefixtures("_small")
def test_rows_hold_both_networks_and_fewer_multiply_adds_where_tokens_are_fewer() -> None:
    dense, sparse = measure_density(256, 8, torch.float32, torch.device("cpu"))
    assert (dense.density, sparse.density) == ("dense", "0.61-0.86")
    assert 0 < sparse.macs < dense.macs
    assert dense.diffusers_s == sparse.diffusers_s > 0
    assert sparse.speedup == pytest.approx(sparse.diffusers_s / sparse.ours_s)


@pytest.mark.usefixtures("_small")
def test_our_dense_side_computes_what_diffusers_does() -> None:
    theirs = density_benchmark._random_diffusers_dit(32, torch.float32, torch.device("cpu"))
    ours = density_benchmark.from_diffusers_dit(theirs.config, theirs.state_dict())
    x, t, labels = torch.randn(2, 4, 32, 32), torch.tensor([500, 20]), torch.tensor([7, 1000])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=labels).sample
        torch.testing.assert_close(ours(x, t, labels), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_small")
def test_one_object_is_printed() -> None:
    asked = ["--pixels", "256", "--steps", "4", "--dtype", "fp32", "--json"]
    result = CliRunner().invoke(app, ["bench", "density", *asked])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"model", "pixels", "density", "dtype", "macs", "ours_s", "diffusers_s", "speedup"} <= set(report["rows"][0])
    assert report["device"]["type"] in ("cpu", "cuda")


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels is 128; it must be one of 256, 512"):
        next(measure_density(128, 4, torch.float32, torch.device("cpu")))
