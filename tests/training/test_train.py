"""Mistakes on the command line of training: exit code 1, one sentence, no traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mezzotint.training.train import main


@pytest.fixture
def recipe(tmp_path: Path, tiny_settings: Callable[..., dict[str, Any]]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    return path


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What the command line says as it ends with exit code 1 (a text is what SystemExit prints on stderr)."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        main()
    said = raised.value.code
    assert isinstance(said, str)
    assert said.startswith("train: ")
    assert "\n" not in said
    return said.removeprefix("train: ")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--set", "optim.lr=3"], "optim.lr is not a setting; the settings there are muon, muon_lr"),
    (["--set", "batch_size=many"], "batch_size is 'many'; it must be a whole number."),
    (["--set", "optim.muon_lr=.nan"], "optim.muon_lr is nan; it must be more than 0."),
    (["--set", "data.path=/nowhere"], "data.path is /nowhere; it must be a folder made by `datasets`"),
    (["--max-minutes", "nan"], "--max-minutes is nan; it must be more than 0."),
    (["--max-minutes", "-1"], "--max-minutes is -1.0; it must be more than 0."),
    (["--init-from", "no-such-model"], "model is 'no-such-model'"),
])
def test_a_wrong_setting_is_one_sentence(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    said = refusal(monkeypatch, "--config", recipe, "--output", tmp_path / "run", *arguments)
    assert said.startswith(sentence)


def test_a_missing_recipe_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, "--config", tmp_path / "none.yaml", "--output", tmp_path / "run")
    assert said == f"--config is {tmp_path / 'none.yaml'}; there is no such file."


def test_an_output_that_is_a_file_is_one_sentence(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refusal(monkeypatch, "--config", recipe, "--output", recipe)
    assert said == f"--output is {recipe}; it must be a folder that can be made and written to (File exists)."


def test_an_output_that_cannot_be_written_is_one_sentence(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, "--config", recipe, "--output", "/proc/run")
    assert said.startswith("--output is /proc/run; it must be a folder that can be made and written to (")


def test_a_process_that_fails_prints_the_sentence_and_exits_with_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mezzotint.training.train", "--config", str(tmp_path / "none.yaml"), "--output", "x"],
        capture_output=True, text=True, check=False, timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"train: --config is {tmp_path / 'none.yaml'}; there is no such file.\n"


@pytest.mark.parametrize("arguments", [
    [], ["--output", "x"], ["--config", "x", "--output", "y", "--max-minutes", "ten"],
])
def test_a_command_that_lacks_something_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert "usage: train" in capsys.readouterr().err
