"""A checkpoint is whole or not there, whatever ends the writing of it."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mezzotint.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from mezzotint.training.config import ConfigError


def checkpoint(step: int) -> Checkpoint:
    weight = torch.nn.Parameter(torch.full((3, 2), float(step)))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return Checkpoint(
        masters={"w": weight.detach().clone()}, ema={"w": torch.full((3, 2), step + 0.5)},
        optimizer={"adamw": optimizer.state_dict()}, state={"step": step, "seconds": 1.5, "config": {"name": "x"}},
    )


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    written = checkpoint(7)
    folder = save_checkpoint(tmp_path, written)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    read = load_checkpoint(folder)
    assert torch.equal(read.masters["w"], written.masters["w"])
    assert torch.equal(read.ema["w"], written.ema["w"])
    moment: Tensor = read.optimizer["adamw"]["state"][0]["exp_avg_sq"]
    assert torch.equal(moment, written.optimizer["adamw"]["state"][0]["exp_avg_sq"])
    assert read.state == written.state


def test_the_newest_two_are_kept_in_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9, 10, 200, 1_000_000):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000200", "step-01000000"]
    assert names(tmp_path) == ["step-00000200", "step-01000000"]


def test_a_run_without_a_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("stopped", ["save_file", "rename", "fsync"])
def test_an_end_in_the_middle_of_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    where = {"save_file": "mezzotint.training.checkpoint.save_file", "rename": "pathlib.Path.rename",
             "fsync": "os.fsync"}
    with monkeypatch.context() as patch:
        patch.setattr(where[stopped], die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(2))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]).state["step"] == 1
    assert len(names(tmp_path)) == 2  # with what was left of the second
    save_checkpoint(tmp_path, checkpoint(2))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_what_other_killed_processes_left_is_cleared_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    left = tmp_path / "checkpoints" / ".unfinished-1234567"
    left.mkdir()
    (left / "masters.safetensors").write_bytes(b"half")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    save_checkpoint(tmp_path, checkpoint(2))
    assert not left.exists()


def test_an_end_in_the_middle_of_pruning_leaves_no_half_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))

    def die_halfway(folder: Path) -> None:
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die_halfway)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, checkpoint(3))
    assert [load_checkpoint(p).state["step"] for p in list_checkpoints(tmp_path)] == [2, 3]


def test_a_checkpoint_that_is_there_is_not_taken_away_to_be_written_again(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(4))
    before = (folder / "masters.safetensors").stat()
    assert save_checkpoint(tmp_path, checkpoint(4)) == folder
    after = (folder / "masters.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("file", ["masters.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_a_broken_file_is_named_in_one_sentence(tmp_path: Path, file: str, damage: str) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(3))
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": b"\xffnoise" * 40}[damage])
    with pytest.raises(ConfigError) as raised:
        load_checkpoint(folder)
    assert str(path) in str(raised.value)
    assert "delete the folder step-00000003 to go on from the checkpoint before it" in str(raised.value)
    assert "\n" not in str(raised.value)
