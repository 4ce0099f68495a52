"""Batches of a run from a given step on, decoded here or by worker processes."""

import signal
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mezzotint.training.config import ConfigError
from mezzotint.training.data import StepSampler

Batch = tuple[list[int], Tensor]
"""Indices of items of the data, and the items, stacked: pictures are uint8 [B, 3, S, S]."""


class Items(Protocol):
    """Data by index."""

    def picture(self, index: int) -> Tensor:
        """One item. Raises ConfigError where it cannot be read."""
        ...


def batches(data: Items, sampler: StepSampler, steps: range, num_workers: int = 0) -> Iterator[Batch]:
    """The batch of each step in `steps`. A batch is a function of its step, whoever decodes it."""
    loader = DataLoader(
        _BatchByStep(data, sampler), batch_size=None, sampler=steps, num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_trainer, collate_fn=_as_it_is,
        # The trainer's own global generator stays untouched by the loader's seed for its workers.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, ConfigError):
            raise batch
        yield batch


class _BatchByStep(Dataset[Batch | ConfigError]):
    def __init__(self, data: Items, sampler: StepSampler) -> None:
        self.data, self.sampler = data, sampler

    def __getitem__(self, step: int) -> Batch | ConfigError:
        """A picture that cannot be read comes back as its error: raised in a worker it would bear a traceback."""
        indices = self.sampler.indices(step)
        try:
            return indices, torch.stack([self.data.picture(i) for i in indices])
        except ConfigError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A stop is sent to the whole process group, and the trainer still needs the batches of its last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
