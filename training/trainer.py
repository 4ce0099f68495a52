"""The training loop: one object that holds a run's parts, and `run` that steps it to the end."""

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import torch
import yaml
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import nn
from tqdm import tqdm

from mezzotint.sampling.precision import DTYPES
from mezzotint.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.config import ConfigError, TrainConfig, to_mapping
from mezzotint.training.data import StepSampler
from mezzotint.training.feed import Batch, batches
from mezzotint.training.hardware import describe_hardware, use_all_cores
from mezzotint.training.metrics_log import MetricsLog
from mezzotint.training.optim import MasterOptimizer, learning_rate_factor
from mezzotint.training.randomness import global_random_state, restore_global_random_state
from mezzotint.training.task import StepKey, Task
from mezzotint.training.text_task import TextTask

Recipe = TrainConfig | ClassTrainConfig


class Trainer:
    """A run in a folder: metrics.jsonl, config.yaml, samples/*.png, checkpoints/step-*."""

    def __init__(self, config: Recipe, output: Path, init_from: str | None = None) -> None:
        """Open the data, build or load the network, and take up the newest checkpoint in `output`, if any.

        Raises ConfigError (settings, data, a broken checkpoint, a network of another shape).
        """
        self.config, self.output = config, output
        # The network holds its own dtype; a launcher's default of mixed precision would cast it again.
        self.accelerator = Accelerator(mixed_precision="no")
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        use_all_cores(self.accelerator)
        _make_folder(output)
        self.task = make_task(config, output, self.accelerator)
        self.sampler = StepSampler(
            self.task.draw_weights(), config.batch_size, config.seed,
            self.accelerator.process_index, self.accelerator.num_processes,
        )
        self.step, self.trained_s = 0, 0.0
        self._build_network(init_from)
        self._check_alike()
        self.saved_step = self.step if self.step else None
        self.log = MetricsLog(output / "metrics.jsonl", self.step) if self.is_main else None
        if self.is_main:
            (output / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))

    def _build_network(self, init_from: str | None) -> None:
        found = list_checkpoints(self.output)
        torch.manual_seed(self.config.seed)
        network = self.task.empty_network() if found else self.task.start_network(init_from)
        _cast(network, self.device, torch.float32)
        self.optimizer = MasterOptimizer(network, self.config.optim)
        _cast(network, self.device, DTYPES[self.config.dtype])
        if self.config.gradient_checkpointing:
            cast(ModelMixin, network).enable_gradient_checkpointing()
        self.optimizer.live = dict(network.named_parameters())
        self.network = network
        self.wrapped = self.accelerator.prepare_model(network)
        if found:
            self._resume(found[-1])
        self.task.prepare(network)

    def _resume(self, folder: Path) -> None:
        checkpoint = load_checkpoint(folder)
        # As settings, so that one which came with a later release counts with its default.
        if type(self.config.model).from_mapping(checkpoint.state["config"]["model"]) != self.config.model:
            raise ConfigError(
                f"{folder} holds a network with other settings; give another --output, or the same model."
            )
        self.optimizer.load_state_dict(checkpoint.optimizer, checkpoint.masters, checkpoint.ema)
        self.step, self.trained_s = checkpoint.state["step"], checkpoint.state["seconds"]
        restore_global_random_state(checkpoint.state["random"])

    def _check_alike(self) -> None:
        """Processes on several hosts see the same checkpoints only on shared storage."""
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.device)).tolist()
        if min(steps) != max(steps):
            raise ConfigError(f"--output is {self.output}; the processes found checkpoints of the steps {steps} in it, "
                              "so give a folder on storage that all of them share.")

    def run(self, max_minutes: float | None = None) -> None:
        """Train to max_steps, or for `max_minutes`, or until SIGTERM or Ctrl-C; each ends with a checkpoint.

        Raises ConfigError when the loss is no number any more; the checkpoints from before are left.
        """
        start = saved = time.monotonic()
        quiet = not (self.is_main and sys.stderr.isatty())
        steps = range(self.step, self.config.max_steps)
        feed = batches(self.task.data, self.sampler, steps, self.config.data.num_workers)
        with _StopFlag() as stop, tqdm(total=steps.stop, initial=self.step, unit="step", disable=quiet) as bar:
            while self.step < self.config.max_steps:
                out_of_time = max_minutes is not None and time.monotonic() - start > max_minutes * 60
                if self._anyone(out_of_time or stop.asked):
                    break
                metrics = self._timed_step(feed)
                bar.update()
                bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {metrics['samples_per_s']:.1f} samples/s")
                self._maybe_sample()
                if time.monotonic() - saved > self.config.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
            self.save()
        if self.log is not None:
            self.log.close()

    def _anyone(self, asked: bool) -> bool:
        """Whether any process was asked to stop: they have to leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.device), "sum").item())

    def _timed_step(self, feed: Iterator[Batch]) -> dict[str, Any]:
        """One step, its wait for pictures included."""
        start = time.perf_counter()
        loss, norm, factor = self.train_step(next(feed))
        if not math.isfinite(loss + norm):
            raise ConfigError(f"the loss is {loss} and the gradient's norm {norm} at step {self.step}; give smaller "
                              "optim.muon_lr and optim.adamw_lr to go on from the last checkpoint.")
        seconds = time.perf_counter() - start
        self.trained_s += seconds
        metrics = {
            "step": self.step, "loss": loss, "grad_norm": norm, "rate_factor": factor,
            "samples_per_s": self.config.batch_size / seconds, "seconds": round(self.trained_s, 3),
        }
        if self.log is not None:
            self.log.write(**metrics)
        self.step += 1
        return metrics

    def train_step(self, batch: Batch) -> tuple[float, float, float]:
        """One update; returns loss, gradient norm and rate factor."""
        config, processes = self.config, self.accelerator
        key = StepKey(
            seed=config.seed, step=self.step, rank=processes.process_index, num_ranks=processes.num_processes
        )
        loss = self.task.loss(self.wrapped, self.network, batch, key)
        self.accelerator.backward(loss)
        factor = learning_rate_factor(self.step, config.max_steps, config.optim)
        norm = self.optimizer.step(factor, self.step)
        return self.accelerator.reduce(loss.detach(), "mean").item(), norm, factor

    def _maybe_sample(self) -> None:
        every = self.config.samples.every_steps
        if self.is_main and every and self.step % every == 0:
            self.task.save_samples(self.ema_network(), self._sample_file())

    def _sample_file(self) -> Path:
        return self.output / "samples" / f"step-{self.step:08d}.png"

    def ema_network(self) -> nn.Module:
        """A copy of the network with the EMA weights, in the run's dtype."""
        network = self.task.empty_network()
        network.load_state_dict(self.optimizer.ema)
        return _cast(network, self.device, DTYPES[self.config.dtype]).eval()

    def save(self) -> None:
        """Write a checkpoint of this very step, unless there is one."""
        if not self.is_main or self.saved_step == self.step:
            return
        state = {
            "step": self.step, "seconds": self.trained_s, "config": to_mapping(self.config),
            "random": global_random_state(), "hardware": describe_hardware(self.accelerator),
            **self.task.facts(),
        }
        masters = {name: p.detach().contiguous() for name, p in self.optimizer.masters.items()}
        save_checkpoint(self.output, Checkpoint(
            masters=masters, ema=self.optimizer.ema, optimizer=self.optimizer.state_dict(), state=state,
        ))
        self.saved_step = self.step


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--output is {output}; it must be a folder that can be made and written to ({error.strerror})."
        ) from None


class _StopFlag:
    """Set by SIGTERM or Ctrl-C while it is entered; the step under way is finished and saved."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def make_task(config: Recipe, output: Path, accelerator: Accelerator) -> Task:
    """The task that a recipe is for. Raises ConfigError as the task does."""
    if isinstance(config, ClassTrainConfig):
        from mezzotint.training.class_task import ClassTask  # an autoencoder, which text does not need

        return ClassTask(config, output, accelerator)
    return TextTask(config, output, accelerator)


def _cast(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """By torch's own `to`: diffusers' warns of modules that have to stay in fp32 even when there are none."""
    torch.nn.Module.to(network, device=device, dtype=dtype)
    return network
