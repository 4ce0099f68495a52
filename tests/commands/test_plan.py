"""`mezzotint plan`: a request's steps and cost."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mezzotint.__main__ import app
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.flops import forward_flops

CUT = {
    "sample_size": 256, "patch_size": 16, "hidden_size": 64, "num_heads": 2, "num_layers": 12,
    "segments": "1 + 2x[1,3,1,0] + 1",
}
CONFIG = DiTConfig.from_mapping(CUT)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def report(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def price(*sides: int, modules: bool = True) -> int:
    """FLOPs of a pass on each of some square sparse grids, all together."""
    return sum(forward_flops(CONFIG, (16, 16), sparse_grid=(side, side), modules=modules) for side in sides)


def model_folder(folder: Path, config: dict[str, Any]) -> str:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"guidance_scale": 3.0}))
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def cut(tmp_path: Path) -> str:
    """The JSON of a model in segments, on 16 x 16 tokens. No weights."""
    return model_folder(tmp_path / "cut", CUT)


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return model_folder(tmp_path / "dense", CUT | {"segments": None})


def test_each_step_has_its_grids_and_its_multiply_adds(cut: str) -> None:
    found = report(cut, "--density", "fast", "--steps", "4", "-n", "3")
    assert (found["model"], found["density"], found["num_images"]) == (cut, "fast", 3)
    rows = found["steps"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["t"] for row in rows] == [1, 0.75, 0.5, 0.25]
    assert [row["sparse_grid"] for row in rows] == [[6, 6], [6, 6], [8, 8], [9, 9]]
    assert [(row["tokens"], row["sparse_tokens"]) for row in rows] == [(256, 36), (256, 36), (256, 64), (256, 81)]
    # Two passes of guidance at two FLOPs a multiply-add.
    assert [row["macs"] for row in rows] == [price(side) for side in (6, 6, 8, 9)]
    assert found["macs"] == 3 * price(6, 6, 8, 9)
    assert found["dense_macs"] == 3 * 4 * forward_flops(replace(CONFIG, segments=None), (16, 16))
    assert {row["modules"] for row in rows} == {"run"}
    assert "seconds" not in found


def test_guidance_has_its_own_grids(cut: str) -> None:
    rows = report(cut, "--steps", "4", "--guidance-density", "fast")["steps"]
    assert [row["sparse_grid"] for row in rows] == [[16, 16]] * 4
    assert [row["guidance_grid"] for row in rows] == [[6, 6], [6, 6], [8, 8], [9, 9]]
    assert [2 * row["macs"] for row in rows] == [price(16, side) for side in (6, 6, 8, 9)]
    rows = report(cut, "--steps", "2", "--guidance-density", "skip")["steps"]
    assert [(row["guidance_grid"], row["guidance_skips_modules"]) for row in rows] == [(None, True)] * 2
    assert [2 * row["macs"] for row in rows] == [price(16) + price(16, modules=False)] * 2


def test_the_steps_that_a_cache_leaves_out_are_known_or_decided_while_drawing(cut: str) -> None:
    taylor = report(cut, "--steps", "5", "--cache", "taylor:3")
    assert [row["modules"] for row in taylor["steps"]] == ["run", "run", "from the cache", "from the cache", "run"]
    assert taylor["macs"] == 3 * price(16) + 2 * price(16, modules=False)
    assert not taylor["macs_are_at_most"]
    first_block = report(cut, "--steps", "3", "--cache", "first-block")
    assert [row["modules"] for row in first_block["steps"]] == ["run"] + ["decided while drawing"] * 2
    assert first_block["macs"] == 3 * price(16)
    assert first_block["macs_are_at_most"]
    assert "at most" in run(cut, "--cache", "first-block").stdout
    assert "at most" not in run(cut, "--cache", "taylor").stdout


def test_a_dense_model_has_no_sparse_grid(dense: str) -> None:
    found = report(dense, "--steps", "1", "--guidance", "1")
    (row,) = found["steps"]
    assert (row["grid"], row["sparse_grid"], row["sparse_tokens"], row["guided"]) == ([16, 16], None, None, False)
    assert (row["guidance_grid"], row["modules"]) == (None, None)
    assert found["macs"] == found["dense_macs"]


def test_a_class_conditional_model_has_the_same_columns(cut: str, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    latent = {"_class_name": "ClassDiT", "sample_size": 16, "hidden_size": 64, "num_heads": 2, "num_layers": 12,
              "segments": "1 + 2x[1,3,1,0] + 1"}
    model_folder(folder, latent)
    for part, config in (("vae", {"latent_channels": 4, "block_out_channels": [8, 8]}),
                         ("scheduler", {"_class_name": "DDIMScheduler"})):
        (folder / part).mkdir()
        file = "config.json" if part == "vae" else "scheduler_config.json"
        (folder / part / file).write_text(json.dumps(config))
    asked = ("--density", "fast", "--guidance-density", "0.86-0.86", "--cache", "taylor", "--steps", "3")
    by_class, by_text = report(str(folder), *asked), report(cut, *asked)
    assert by_class.keys() == by_text.keys()
    assert [row.keys() for row in by_class["steps"]] == [row.keys() for row in by_text["steps"]]
    assert [row["sparse_grid"] for row in by_class["steps"]] == [[3, 3], [4, 4], [4, 4]]
    assert 0 < by_class["macs"] < by_class["dense_macs"]


def test_people_get_a_table(cut: str) -> None:
    result = run(cut, "--density", "0.44-0.61", "--guidance-density", "skip", "--cache", "taylor", "--steps", "8")
    shown = " ".join(result.stdout.split())  # a title longer than its table is broken
    assert "density 0.44-0.61, of guidance skip, cache taylor" in shown
    for words in ("10 x 10", "12 x 12", "skips modules", "from the cache"):
        assert words in shown
    assert "GMACs for 1 picture, " in shown
    assert "% of the dense network's" in shown


def test_seconds_are_measured_for_each_kind_of_pass(cut: str) -> None:
    found = report(cut, "--steps", "5", "--density", "0.5-0.5", "--cache", "taylor:3", "--seconds", "-n", "2")
    times = [row["seconds"] for row in found["steps"]]
    assert all(one > 0 for one in times)
    assert times[0] == times[1] == times[4] != times[2] == times[3]
    assert found["seconds"] == pytest.approx(2 * sum(times))
    assert "timed now" in found["seconds_from"]
    assert (found["device"], found["dtype"]) in (("cpu", "fp32"), ("cpu", "bf16"), ("cuda", "bf16"))
    shown = run(cut, "--steps", "1", "--seconds").stdout
    assert "timed now with random weights" in shown


def test_a_plan_without_seconds_is_light(cut: str) -> None:
    code = "import sys; sys.argv = ['mezzotint', 'plan', sys.argv[1], '--json']\nimport mezzotint.__main__ as m\n"
    code += "try: m.main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code, cut], capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "False"
    assert json.loads(result.stdout)["steps"]


@pytest.mark.parametrize("settings", [
    ("--density", "fast"), ("--guidance-density", "skip"), ("--cache", "taylor"), ("--guidance", "1"),
])
def test_the_picture_shows_tokens_and_cost(cut: str, tmp_path: Path, settings: tuple[str, ...]) -> None:
    plain, other = tmp_path / "plain.png", tmp_path / "other.png"
    assert run(cut, "--plot", str(plain)).exit_code == 0
    assert run(cut, *settings, "--plot", str(other)).exit_code == 0
    with Image.open(plain) as one, Image.open(other) as two:
        assert one.size == two.size
        below_the_title = (0, 40, *one.size)
        assert one.crop(below_the_title).tobytes() != two.crop(below_the_title).tobytes()


@pytest.mark.parametrize(("settings", "words"), [
    (("--density", "fast"), "mezzotint: density is fast; "),
    (("--guidance-density", "skip"), "mezzotint: guidance_density is skip; "),
    (("--cache", "taylor"), "mezzotint: cache is taylor; "),
    (("--cache", "sometimes"), 'mezzotint: cache is "sometimes"; it must be off, first-block or taylor'),
    (("--plot", "plan.gif"), "mezzotint: --plot is plan.gif; its name must end in .png."),
    (("--plot", "/no/such/folder/plan.png"), "mezzotint: --plot is /no/such/folder/plan.png; the folder"),
])
def test_what_cannot_be_planned_is_one_sentence(dense: str, settings: tuple[str, str], words: str) -> None:
    refused = run(dense, *settings)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(words)
    assert len(refused.stderr.strip().splitlines()) == 1
