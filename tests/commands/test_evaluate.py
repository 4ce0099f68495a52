"""`mezzotint evaluate` on an untrained network."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.flops import forward_flops
from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline

EMOJI = Path(__file__).parents[1] / "data" / "emoji"
SHAPE = DiTConfig(sample_size=64, patch_size=16, hidden_size=32, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "untrained"
    torch.manual_seed(0)
    pipeline = Pipeline(DiT(**asdict(SHAPE)), FlowMatchEulerDiscreteScheduler())
    pipeline.save_pretrained(folder)
    return folder


def evaluate_as_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mezzotint", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def evaluate(*arguments: object) -> Result:
    """The same within this process, which has imported torch already."""
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def report(model: Path) -> dict[str, Any]:
    result = evaluate_as_a_process(model, "--labels", 40, "--steps", 2, "--guidance", 1, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # refuses anything before or after the one object


def test_the_json_says_what_was_measured_and_how(report: dict[str, Any], model: Path) -> None:
    for scores in (report["retrieval"], report["blurred_48px"], report["shuffled"]):
        assert set(scores) == {"top1", "top5"}
        assert 0 <= scores["top1"] <= scores["top5"] <= 1
    assert report["features"] == "efficientnet-lite0-imagenet-1280"
    assert report["num_labels"] == 40
    assert report["model"]["name"] == str(model)
    assert len(report["model"]["fingerprint"]) == 16
    assert (report["num_inference_steps"], report["guidance_scale"]) == (2, 1)
    assert report["gallery"]["num_pictures"] > 3300
    assert report["seconds"]["total"] >= report["seconds"]["sample"] > 0


def test_the_kernel_distance_stands_beside_that_of_blurred_pictures(report: dict[str, Any]) -> None:
    drawn, blurred = (report["kernel_distance"][key] for key in ("drawn", "blurred_48px"))
    for distance in (drawn, blurred):
        assert set(distance) == {"value", "low", "high"}
        assert distance["low"] < distance["value"] < distance["high"]
    assert drawn["low"] > blurred["high"]


def test_the_settings_and_their_cost_are_told(report: dict[str, Any]) -> None:
    assert [report[name] for name in ("density", "guidance_density", "cache")] == ["full", "same", "off"]
    assert report["macs_a_picture"] == 2 * forward_flops(SHAPE, (4, 4)) // 2
    assert "paired" not in report


@pytest.fixture(scope="module")
def cut_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in segments, 8 x 8 tokens."""
    torch.manual_seed(0)
    network = DiT(**asdict(replace(SHAPE, patch_size=8, num_layers=5, segments="1 + 1x[1,1,1,0] + 1")))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("models") / "cut"
    Pipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return folder


def test_density_guidance_and_cache_reach_the_pictures_and_are_paired_with_others(cut_model: Path) -> None:
    asked = (cut_model, "--data", EMOJI, "--labels", 6, "--steps", 4, "--density", "balanced", "--json")
    sparser = ("--guidance-density", "fast", "--cache", "taylor:2")
    result = evaluate(*asked, *sparser, "--paired-with", "guidance_density=same, cache=off")
    assert result.exit_code == 0, result.stderr
    report, plain = json.loads(result.stdout), json.loads(evaluate(*asked).stdout)
    assert [report[name] for name in ("density", "guidance_density", "cache")] == ["balanced", "fast", "taylor:2"]
    assert report["kernel_distance"]["drawn"] != plain["kernel_distance"]["drawn"]
    assert report["macs_a_picture"] < plain["macs_a_picture"]
    paired = report["paired"]
    assert [paired["with"][name] for name in ("density", "guidance_density", "cache")] == ["balanced", "same", "off"]
    assert 0 < paired["feature_distance"] < 1
    assert 0 < paired["rms_pixel_difference"] < 1
    same = json.loads(evaluate(*asked, *sparser, "--paired-with", "guidance_density=fast").stdout)["paired"]
    assert (same["feature_distance"], same["rms_pixel_difference"]) == (pytest.approx(0, abs=1e-6), 0)


def test_people_are_told_what_it_was_paired_with(cut_model: Path) -> None:
    shown = evaluate(cut_model, "--data", EMOJI, "--labels", 3, "--steps", 1, "--paired-with", "density=fast").stdout
    assert "against density fast, guidance_density same, cache off: feature distance" in shown
    assert "GMACs a picture" in shown


def test_noise_is_no_better_than_shuffled_and_far_below_blurred_pictures(report: dict[str, Any]) -> None:
    assert report["retrieval"]["top5"] < 0.2
    assert report["shuffled"]["top5"] < 0.2
    assert report["blurred_48px"]["top1"] > 0.7


def test_the_same_model_gets_the_same_scores_again_and_a_sheet_shows_its_pictures(
    report: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    result = evaluate(model, "--labels", 40, "--steps", 2, "--guidance", 1, "--sheet", sheet)
    assert result.exit_code == 0, result.stderr
    for key in ("retrieval", "blurred_48px", "shuffled"):
        assert f"{report[key]['top1']:.1%}" in result.stdout
    assert report["features"] in result.stdout
    with Image.open(sheet) as image:
        assert image.width > 8 * 128
        assert image.height > 5 * 128


def test_ones_own_data_set_is_measured_anew(model: Path) -> None:
    result = evaluate(model, "--data", EMOJI, "--labels", 9, "--steps", 1, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["gallery"] == {"source": str(EMOJI), "num_pictures": 10, "num_labels": 9}
    assert report["blurred_48px"]["top1"] == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["nobody"], 1, "model is 'nobody'"),
        (["{model}", "--labels", "5000"], 1, "labels is 5000; it must be from 2 to"),
        (["{model}", "--labels", "1"], 2, "labels"),
        (["{model}", "--steps", "1000000000"], 2, "steps"),
        (["{model}", "--guidance", "nan"], 2, "guidance"),
        (["{model}", "--sheet", "sheet.jpg"], 1, "must end in .png"),
        (["{model}", "--sheet", "/nowhere/at/all/sheet.png"], 1, "is not there"),
        (["{model}", "--data", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["{model}", "--density", "fast"], 1, "density is fast; "),
        (["{model}", "--cache", "on"], 1, 'cache is "on"; it must be off'),
        (["{model}", "--paired-with", "cache"], 1, "--paired-with is 'cache'; it must be one or more of density"),
        (["{model}", "--paired-with", "steps=3"], 1, "--paired-with is 'steps=3'"),
        (["{model}", "--paired-with", "density=half"], 1, 'density is "half"; it must be full'),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence_and_nothing_on_stdout(
    model: Path, arguments: list[str], exit_code: int, words: str
) -> None:
    result = evaluate(*[argument.replace("{model}", str(model)) for argument in arguments], "--json")
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    assert words in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
