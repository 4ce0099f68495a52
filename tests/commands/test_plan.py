"""`mezzotint plan`: a request's steps and cost."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mezzotint.__main__ import app
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.flops import forward_flops

CUT = {"sample_size": 256, "patch_size": 16, "segments": "1 + 2x[1,3,1,0] + 1"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.fixture
def cut(tmp_path: Path) -> str:
    """The JSON of a model in segments, on 16 x 16 tokens. No weights."""
    folder = tmp_path / "cut"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"guidance_scale": 3.0}))
    (folder / "transformer" / "config.json").write_text(json.dumps(CUT))
    return str(folder)


def test_each_step_has_its_grids_and_its_multiply_adds(cut: str) -> None:
    report = json.loads(run("--model", cut, "--density", "fast", "--steps", "4", "-n", "3", "--json").stdout)
    assert (report["model"], report["density"], report["num_images"]) == (cut, "fast", 3)
    rows = report["steps"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["t"] for row in rows] == [1, 0.75, 0.5, 0.25]
    assert [row["sparse_grid"] for row in rows] == [[6, 6], [6, 6], [8, 8], [9, 9]]
    assert [(row["tokens"], row["sparse_tokens"]) for row in rows] == [(256, 36), (256, 36), (256, 64), (256, 81)]
    config = DiTConfig.from_mapping(CUT)
    # Two passes of guidance at two FLOPs a multiply-add.
    expected = [forward_flops(config, (16, 16), sparse_grid=(side, side)) for side in (6, 6, 8, 9)]
    assert [row["macs"] for row in rows] == expected
    assert report["macs"] == 3 * sum(expected)


def test_a_dense_model_has_no_sparse_grid() -> None:
    (row,) = json.loads(run("--steps", "1", "--guidance", "1", "--json").stdout)["steps"]
    assert (row["grid"], row["sparse_grid"], row["sparse_tokens"], row["guided"]) == ([8, 8], None, None, False)


def test_people_get_a_table(cut: str) -> None:
    shown = run("--model", cut, "--density", "0.44-0.61", "--steps", "8").stdout
    assert "density 0.44-0.61" in shown
    assert "10 x 10" in shown
    assert "12 x 12" in shown
    assert shown.strip().endswith("GMACs for 1 picture")


def test_what_cannot_be_planned_is_one_sentence() -> None:
    refused = run("--density", "fast")
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("mezzotint: density is fast; emoji-256 has no segments")
