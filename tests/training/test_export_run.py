"""From a run to a model that can be drawn with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import mezzotint.training.export_run as export_module
from mezzotint.__main__ import app
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.training.checkpoint import list_checkpoints, load_checkpoint
from mezzotint.training.config import from_mapping
from mezzotint.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., dict[str, Any]]) -> Path:
    """A run of five steps."""
    output = tmp_path_factory.mktemp("runs") / "five"
    Trainer(from_mapping(tiny_settings(samples={"guidance_scale": 2.5})), output).run()
    return output


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_model_folder_draws_with_the_averaged_weights(run: Path, tmp_path: Path) -> None:
    done = export(run, "--name", "small", "--to", tmp_path / "models")
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "models" / "small"
    assert done.stdout == f"{folder}\n"
    assert [p.name for p in folder.parent.iterdir()] == ["small"]
    average = load_checkpoint(list_checkpoints(run)[-1]).ema
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == average.keys()
    for name, value in weights.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, average[name].bfloat16())
    pipeline = Pipeline.from_pretrained(str(folder))
    assert pipeline.transformer.shape.noise_scale == 2.0
    drawn = pipeline("red apple", seed=1).images[0]
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (32, 32)


def test_the_card_says_what_was_trained_and_for_how_long(run: Path, tmp_path: Path) -> None:
    assert export(run, "--name", "small", "--to", tmp_path).exit_code == 0
    state = load_checkpoint(list_checkpoints(run)[-1]).state
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.startswith("# small\n")
    assert f"5 steps, 20 pictures seen, {state['seconds'] / 3600:.2f} hours on {state['hardware']}" in card
    assert "noise_scale: 2.0" in card
    assert "path: data\n" in card
    assert str(run.parent) not in card
    assert "![loss over training](loss.png)" in card
    assert Image.open(tmp_path / "small" / "loss.png").size[0] > 300


def test_the_model_keeps_the_sampling_of_its_run_or_what_is_asked_for(run: Path, tmp_path: Path) -> None:
    assert export(run, "--name", "own", "--to", tmp_path).exit_code == 0
    card = find_model(str(tmp_path / "own"))
    assert (card.guidance_scale, card.num_inference_steps, card.time_shift) == (2.5, 2, 1.0)
    given = ["--guidance", 0, "--steps", 7, "--time-shift", 3]
    assert export(run, "--name", "asked", "--to", tmp_path, *given).exit_code == 0
    card = find_model(str(tmp_path / "asked"))
    assert (card.guidance_scale, card.num_inference_steps, card.time_shift) == (0.0, 7, 3.0)


def test_an_older_model_is_replaced_only_when_the_new_one_is_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(run, "--name", "small", "--to", tmp_path).exit_code == 0
    folder = tmp_path / "small"
    (folder / "mark").write_text("the old one")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write_card", full)
        failed = export(run, "--name", "small", "--to", tmp_path)
    assert failed.exit_code == 1
    assert failed.stderr == "mezzotint: [Errno 28] No space left on device\n"
    assert (folder / "mark").read_text() == "the old one"
    assert find_model(str(folder)).num_inference_steps == 2
    assert [p.name for p in tmp_path.iterdir()] == ["small"]

    assert export(run, "--name", "small", "--to", tmp_path, "--steps", 9).exit_code == 0
    assert not (folder / "mark").exists()
    assert json.loads((folder / "model_index.json").read_text())["num_inference_steps"] == 9
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_is_no_model_is_never_replaced(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "documents"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    failed = export(run, "--name", "documents", "--to", tmp_path)
    assert failed.exit_code == 1
    assert failed.stderr == f"mezzotint: {mine} is there and is no model; give another name, or move it away.\n"
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    failed = export(tmp_path / "none", "--name", "small", "--to", tmp_path / "models")
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert failed.stderr == (
        f"mezzotint: RUN is {tmp_path / 'none'}; it holds no checkpoint, so let training/train.py write one first.\n"
    )


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_name_that_is_a_path_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    failed = export(run, "--name", name, "--to", tmp_path / "models")
    assert failed.exit_code == 1
    assert f"--name is {name!r}; it must be a plain folder name" in failed.stderr
    assert not (tmp_path / "models").exists()
