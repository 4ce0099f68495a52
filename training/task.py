"""What a run trains, apart from the loop: its data, its network and the loss of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mezzotint.training.feed import Batch, Items
from mezzotint.training.randomness import generator_for

_PAST_ALL_RANKS = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class StepKey:
    """Names the random numbers of one step in one process: a run that goes on draws what it would have drawn."""

    seed: int
    step: int
    rank: int = 0
    num_ranks: int = 1

    def own(self) -> torch.Generator:
        """A generator of this process alone."""
        return generator_for(self.seed, self.step, self.rank)

    def shared(self, stream: int) -> torch.Generator:
        """A generator that is the same in every process; different streams are independent."""
        return generator_for(self.seed, self.step, _PAST_ALL_RANKS + stream)


class Task(Protocol):
    """A family of networks with its data and its objective. `text_task.TextTask` is one."""

    @property
    def data(self) -> Items:
        """What is trained on."""
        ...

    def draw_weights(self) -> Tensor:
        """Probability of each item of the data, fp64."""
        ...

    def empty_network(self) -> nn.Module:
        """A network of the run's shape whose weights come from elsewhere."""
        ...

    def start_network(self, init_from: str | None) -> nn.Module:
        """The network that the first step trains, fp32 on the CPU: fresh, or from a model (a name or a folder).

        Raises ConfigError where the model does not fit the recipe.
        """
        ...

    def prepare(self, network: nn.Module) -> None:
        """Called once, before the first step, when the network has its weights. Raises ConfigError."""
        ...

    def loss(self, wrapped: Callable[..., Tensor], network: nn.Module, batch: Batch, key: StepKey) -> Tensor:
        """Mean loss of this process's share of a batch. wrapped: the network as it must be called (DDP around it)."""
        ...

    def save_samples(self, network: nn.Module, path: Path) -> None:
        """Draw the run's sample grid with a network and save it as PNG."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a checkpoint's state says of the task, as JSON holds it."""
        ...
