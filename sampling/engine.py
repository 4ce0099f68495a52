"""What a worker asks of whatever draws the pictures: the interface and its shared types. No torch here.

Implementations: `torch_engine.TorchEngine`, and `null_engine.NullEngine` for tests of the service.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from mezzotint.sampling.request import GenerateRequest

Phase = Literal["load", "sample", "decode"]


class Cancelled(Exception):
    """The request was cancelled; raised by an engine between two denoising steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """`step` of `num_steps` is done. `preview` is a small picture of the first image so far, at most
    256 pixels a side, or None when this step brings none."""

    phase: Phase
    step: int
    num_steps: int
    preview: Image.Image | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What came out: pictures in order of their seeds, seconds by phase, FLOPs that were computed and what drew them.

    module_passes: how often the sparse-dense modules ran, over pictures, steps and branches of guidance; None for a
    network without segments.
    """

    images: list[Image.Image]
    seeds: list[int]
    seconds: dict[str, float]
    flops: int
    model: str
    fingerprint: str
    device: str
    dtype: str
    warnings: list[str] = field(default_factory=list)
    module_passes: int | None = None


class Engine(Protocol):
    """Draws complete, accepted requests, one at a time."""

    def draw(
        self,
        request: GenerateRequest,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Drawn:
        """Draw a request.

        `on_progress` is called after every step, `cancelled` is asked before every step.
        Raises Cancelled, RequestError, or MemoryError with a sentence that says what to lower.
        """
        ...
