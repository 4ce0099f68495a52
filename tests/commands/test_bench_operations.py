"""`mezzotint bench kernels` without --compile-report: the fused operations beside what they replace."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mezzotint.__main__ import app

SMALL = ("--tokens", "16", "--width", "32", "--experts", "4", "--capacity", "1,2", "--device", "cpu")


SIDES = {"experts": ["one_hot", "torch", "products"], "dispatch": ["one_hot", "torch"], "norm_modulate": ["torch"]}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", "bench", "kernels", *arguments], capture_output=True, text=True,
        timeout=240, check=False, env={**os.environ, "COLUMNS": "120"},
    )


@pytest.mark.slow
def test_it_prints_one_object_with_every_side_of_every_point() -> None:
    done = bench(*SMALL, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"]["type"] == "cpu"
    points = [(r["operation"], r["capacity"], r["dtype"], r["pass"]) for r in report["rows"]]
    assert len(points) == len(set(points)) == 5 * 2 * 2
    for row in report["rows"]:
        assert (row["tokens"], row["width"]) == (16, 32)
        others = SIDES[row["operation"]]
        assert all(row[f"over_{side}"] == pytest.approx(row[f"{side}_s"] / row["ours_s"]) for side in others)
        assert row["backend"] in ("cpu", "torch")


@pytest.mark.slow
def test_the_tables_have_the_sides_of_their_operation() -> None:
    done = bench(*SMALL, "--dtype", "fp32", "--forward-only")
    assert done.returncode == 0, done.stderr
    experts, modulation = done.stdout.split("norm_modulate on")
    assert "experts on type cpu" in experts
    assert "dispatch on type cpu" in experts
    assert experts.count("float32") == 4
    assert modulation.count("float32") == 1
    assert "one_hot" in experts
    assert "one_hot" not in modulation


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "none"], "--tokens is 'none'"),
        (["--width", "0"], "--width is '0'; it must be numbers from 1 to 10000"),
        (["--capacity", "9"], "--capacity is '9'; it must be numbers over 0 and up to 8"),
        (["--dtype", "fp8"], "one of bf16, fp16, fp32"),
        (["--device", "tpu"], "auto, cpu or cuda"),
    ],
)
def test_a_setting_that_cannot_be_is_named_before_anything_runs(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
    assert not done.stdout
