"""Training as a real process that is killed, stopped and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "mezzotint.training.train"]


def on_one_core() -> None:
    """Networks so small gain nothing from threads, and on a busy machine they wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


class Runs:
    """Starts training processes and ends those that are left."""

    def __init__(self, folder: Path, settings: Callable[..., dict[str, Any]]) -> None:
        self.folder, self.settings = folder, settings
        self._started: list[subprocess.Popen[str]] = []

    def recipe(self, **changes: Any) -> Path:
        path = self.folder / f"recipe-{len(list(self.folder.glob('recipe-*')))}.yaml"
        path.write_text(yaml.safe_dump(self.settings(**changes)))
        return path

    def start(self, *command: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=on_one_core,
        )
        self._started.append(process)
        return process

    def finish(self, *command: object) -> str:
        """Run to the end; returns what was printed."""
        process = self.start(*command)
        return ended(process)

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=280)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture
def runs(tmp_path: Path, tiny_settings: Callable[..., dict[str, Any]]) -> Iterator[Runs]:
    made = Runs(tmp_path, tiny_settings)
    yield made
    made.end()


def whole_lines(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def checkpoint_steps(output: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (output / "checkpoints").glob("step-*"))


def wait_for(met: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.002)


def ema(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"step-{step:08d}" / "ema.safetensors")


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_as_if_nothing_had_been(runs: Runs, tmp_path: Path) -> None:
    steps = 100
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    recipe = runs.recipe(max_steps=steps, checkpoint_minutes=0.005)
    runs.finish(*TRAIN, "--config", recipe, "--output", straight)
    command = [*TRAIN, "--config", recipe, "--output", broken]
    process = runs.start(*command)

    def in_the_middle() -> bool:
        """A checkpoint is there, and steps after it are logged already."""
        saved, logged = checkpoint_steps(broken), whole_lines(broken)
        return bool(saved and logged and saved[-1] >= 10 and logged[-1]["step"] >= saved[-1] + 2)

    wait_for(in_the_middle, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    killed_at = whole_lines(broken)[-1]["step"]
    resumed_from = checkpoint_steps(broken)[-1]
    assert 10 <= resumed_from < killed_at < steps - 1
    runs.finish(*command)

    expected, found = whole_lines(straight), whole_lines(broken)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(steps))
    for one, other in zip(expected, found, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6, rel=1e-6)
        assert other["rate_factor"] == one["rate_factor"]
    assert len({line["loss"] for line in found}) > steps / 2
    assert checkpoint_steps(straight)[-1] == checkpoint_steps(broken)[-1] == steps
    assert not list((broken / "checkpoints").glob(".*"))
    averages = ema(broken, steps)
    for name, value in ema(straight, steps).items():
        torch.testing.assert_close(averages[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.timeout(600)
def test_a_stop_or_the_end_of_its_minutes_leaves_a_checkpoint_of_the_very_step(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [*TRAIN, "--config", runs.recipe(max_steps=1_000_000), "--output", output]
    process = runs.start(*command)
    wait_for(lambda: len(whole_lines(output)) >= 3, process)
    assert checkpoint_steps(output) == []
    os.kill(process.pid, signal.SIGTERM)
    ended(process)
    stopped_at = len(whole_lines(output))
    assert checkpoint_steps(output) == [stopped_at]

    runs.finish(*command, "--max-minutes", "0.02")
    steps = [line["step"] for line in whole_lines(output)]
    assert steps == list(range(len(steps)))
    assert len(steps) > stopped_at
    assert checkpoint_steps(output) == [stopped_at, len(steps)]


TWO_PROCESSES = """
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from mezzotint.training.config import load_config
from mezzotint.training.trainer import Trainer

recipe, output = sys.argv[1:]
rank = int(os.environ["RANK"])
trainer = Trainer(load_config(Path(recipe)), Path(output))
# Only the second process has its time limited; the first has to stop with it.
trainer.run(max_minutes=[None, 0.02][rank])
weights = {name: p.detach().contiguous() for name, p in trainer.optimizer.masters.items()}
assert trainer.accelerator.num_processes == 2
save_file(weights, f"{output}/rank-{rank}.safetensors", metadata={"step": str(trainer.step)})
"""


@pytest.mark.timeout(600)
def test_two_processes_stop_at_one_step_with_the_same_weights(runs: Runs, tmp_path: Path) -> None:
    from safetensors import safe_open

    script, output = tmp_path / "two.py", tmp_path / "run"
    script.write_text(TWO_PROCESSES)
    # accelerate's own launcher starts several processes on CPUs only through MPI, and this one everywhere.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs.finish(*launch, script, runs.recipe(max_steps=1_000_000), output)
    logged = whole_lines(output)
    assert len(logged) >= 1
    files = [output / f"rank-{rank}.safetensors" for rank in range(2)]
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"step": str(len(logged))}
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    saved = load_file(output / "checkpoints" / f"step-{len(logged):08d}" / "masters.safetensors")
    assert all(torch.equal(value, first[name]) for name, value in saved.items())


@pytest.mark.timeout(600)
def test_the_launcher_runs_the_script_from_the_repository(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "run"
    runs.finish(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "training/train.py",
        "--config", runs.recipe(max_steps=50), "--output", output, "--set", "max_steps=2",
        "--set", "optim.muon_lr=1e-4",
    )
    assert [line["step"] for line in whole_lines(output)] == [0, 1]
    assert checkpoint_steps(output) == [2]
    assert yaml.safe_load((output / "config.yaml").read_text())["optim"]["muon_lr"] == 1e-4
