"""`mezzotint bench`: what it prints, what it draws, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.kernels.attention_benchmark import Sweep, points, random_layout, run_sweep


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", "bench", *arguments], capture_output=True, text=True, timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_attention_prints_one_object_and_draws_a_chart(tmp_path: Path) -> None:
    done = bench("attention", "--tokens", "64,128", "--density", "1,0.5", "--head-dim", "32", "--dtype", "bf16,fp32",
                 "--heads", "2", "--no-flex", "--device", "cpu", "--plot", str(tmp_path / "chart.png"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"]["type"] == "cpu"
    assert report["device"]["kind"] in ("A", "B")
    combinations = {(r["tokens"], r["density"], r["dtype"], r["pass"]) for r in report["rows"]}
    assert len(report["rows"]) == len(combinations) == 2 * 2 * 2 * 2 - 4  # half of one block is none
    for row in report["rows"]:
        assert row["ours_s"] > 0
        assert row["over_sdpa"] == pytest.approx(row["sdpa_s"] / row["ours_s"])
        assert row["flex_s"] is row["over_flex"] is None
        assert row["flex_reason"] == "left out by --no-flex"
        assert row["backend"] in ("cpu", "cpu-torch", "sdpa")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.format == "PNG"
        assert len(chart.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "64,many"], "--tokens is '64,many'"),
        (["--density", "0"], "over 0 and up to 1"),
        (["--dtype", "int8"], "one of bf16, fp16, fp32"),
        (["--block", "48"], "16, 32, 64 or 128"),
        (["--plot", "chart.svg"], "must end in .png"),
        (["--device", "tpu"], "auto, cpu or cuda"),
    ],
)
def test_a_setting_that_cannot_be_is_named_before_anything_runs(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["bench", "attention", *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
    assert not done.stdout


def test_the_mask_has_the_density_that_was_asked_for() -> None:
    for density in (0.125, 0.25, 0.5, 1.0):
        layout = random_layout(1024, 64, density, torch.device("cpu"))
        assert layout.density() == density
        assert layout.to_dense().diagonal(dim1=-2, dim2=-1).all()


def test_each_point_of_a_sweep_is_measured_for_each_pass() -> None:
    sweep = Sweep(tokens=(32, 64), densities=(1.0, 0.5), head_dims=(16,), dtypes=(torch.float32,), heads=1, block=16,
                  flex=False)
    rows = list(run_sweep(sweep, torch.device("cpu")))
    assert [(r.tokens, r.density, r.direction) for r in rows] == [
        (tokens, density, direction) for tokens, _, _, density in points(sweep)
        for direction in ("forward", "forward+backward")
    ]
