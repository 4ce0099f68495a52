"""`mezzotint generate` as a person runs it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mezzotint.sampling.media import read_metadata, sha256_hex


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | environment, timeout=240,
    )


def test_one_json_object_and_a_picture_that_can_be_drawn_again(tiny_model: Path, tmp_path: Path) -> None:
    first = tmp_path / "apple.png"
    done = run("generate", "a red apple", "-o", str(first), "--seed", "7", "--steps", "3", "-n", "2", "--json",
               "--model", str(tiny_model))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [o["path"] for o in report["outputs"]] == [str(tmp_path / "apple-1.png"), str(tmp_path / "apple-2.png")]
    assert [o["seed"] for o in report["outputs"]] == [7, 8]
    assert set(report["seconds"]) == {"load", "sample", "save", "total"}
    assert report["seconds"]["total"] == pytest.approx(sum(report["seconds"][k] for k in ("load", "sample", "save")),
                                                      abs=0.01)
    assert set(report["model"]) == {"name", "fingerprint"}
    assert report["flops"] > 0
    second = report["outputs"][1]
    assert sha256_hex(Path(second["path"]).read_bytes()) == second["sha256"]
    metadata = read_metadata(Image.open(second["path"]))
    assert metadata is not None
    asked = metadata["request"]
    again = run("generate", asked["prompt"], "-o", str(tmp_path / "again.png"), "--seed", str(asked["seed"]),
                "--steps", str(asked["num_inference_steps"]), "--guidance", str(asked["guidance_scale"]),
                "--model", asked["model"], "--json")
    assert again.returncode == 0, again.stderr
    assert Image.open(second["path"]).tobytes() == Image.open(tmp_path / "again.png").tobytes()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("",), 1, "prompt is empty"),
        (("a cat", "--steps", "1000000000"), 1, "num_inference_steps is 1000000000; it must be a whole number from"),
        (("a cat", "--guidance", "nan"), 1, "guidance_scale is nan"),
        (("a cat", "--width", "100"), 1, "width is 100"),
        (("a cat", "--model", "no-such-model"), 1, "no-such-model"),
        (("a cat", "--seed", "-1"), 1, "seed is -1"),
        (("a cat", "--density", "fast"), 1, "has no segments of token density, so give full"),
        (("a cat", "--guidance-density", "skip"), 1, "guidance_density is skip; "),
        (("a cat", "--cache", "taylor:0"), 1, 'cache is "taylor:0"; it must be off, first-block or taylor'),
        (("a cat", "--density", "0.9-0.6"), 1, 'density is "0.9-0.6"; it must be full, balanced, fast, or two'),
        (("a cat", "-o", "/no/such/folder/a.png"), 1, "/no/such/folder does not exist"),
        (("a cat", "-o", "a.gif"), 1, "must end in .png"),
        (("a cat", "--dtype", "int3"), 1, "dtype is 'int3'"),
        (("a cat", "--no-such-option"), 2, "No such option"),
        ((), 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    given = arguments if "--model" in arguments or code == 2 else (*arguments, "--model", str(tiny_model))
    done = run("generate", *given)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1
