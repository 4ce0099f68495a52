"""An engine without a network: a fixed small picture after a settable time a step.

It lets the tests of the queue and the page run fast; it is never a fallback.
"""

import time
from collections.abc import Callable

from PIL import Image, ImageDraw

from mezzotint.sampling.engine import Cancelled, Drawn, Progress
from mezzotint.sampling.request import GenerateRequest


class NullEngine:
    """Takes `step_s` seconds a step, then returns pictures that depend on the seed alone."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s

    def draw(
        self,
        request: GenerateRequest,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Drawn:
        """See `engine.Engine.draw`."""
        start = time.perf_counter()
        seeds = [(request.seed or 0) + i for i in range(request.num_images)]
        images = [_picture(seed, request.width or 64, request.height or 64) for seed in seeds]
        for step in range(request.num_inference_steps):
            if cancelled():
                raise Cancelled
            time.sleep(self.step_s)
            on_progress(Progress(phase="sample", step=step + 1, num_steps=request.num_inference_steps,
                                 preview=images[0]))
        return Drawn(
            images=images, seeds=seeds, seconds={"load": 0.0, "sample": time.perf_counter() - start},
            flops=0, model=request.model, fingerprint="null", device="none", dtype="none",
        )


def _picture(seed: int, width: int, height: int) -> Image.Image:
    """A disc on white whose colour is read off the seed."""
    image = Image.new("RGB", (width, height), "white")
    colour = ((seed * 37) % 200, (seed * 61) % 200, (seed * 97) % 200)
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=colour)
    return image
