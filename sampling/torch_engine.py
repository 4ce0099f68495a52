"""The engine that draws with a network."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mezzotint.sampling.engine import Cancelled, Drawn, Progress
from mezzotint.sampling.hub import Hub
from mezzotint.sampling.pipeline import Pipeline, PipelineOutput, to_images
from mezzotint.sampling.precision import DTYPES, dtype_name, fastest_dtype
from mezzotint.sampling.request import GenerateRequest, RequestError

if TYPE_CHECKING:
    from mezzotint.sampling.class_pipeline import ClassPipeline


class TorchEngine:
    """Draws requests on one device; the models stay loaded between them."""

    def __init__(self, device: str | None = None, dtype: str | None = None) -> None:
        """device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
        dtype: "bf16" or "fp32"; None takes what is measured to be faster.

        Raises RequestError when the device or the dtype is not to be had.
        """
        self.device = _device(device)
        if dtype is not None and dtype not in DTYPES:
            raise RequestError("dtype", f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        self.dtype = DTYPES[dtype] if dtype else fastest_dtype(str(self.device))
        self.hub = Hub(self.device, self.dtype)

    def draw(
        self,
        request: GenerateRequest,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Drawn:
        """See `engine.Engine.draw`."""
        start = time.perf_counter()
        on_progress(Progress(phase="load", step=0, num_steps=request.num_inference_steps))
        model = self.hub.get(request.model)
        loaded = time.perf_counter()
        if cancelled():
            raise Cancelled
        try:
            out = _drawn(model.pipeline, request, _watcher(on_progress, cancelled))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryError(_what_to_lower(request)) from error
        return Drawn(
            images=out.images, seeds=out.seeds, warnings=out.warnings,
            seconds={"load": loaded - start, "sample": time.perf_counter() - loaded},
            flops=out.flops, module_passes=out.module_passes,
            model=request.model, fingerprint=model.fingerprint,
            device=str(self.device), dtype=dtype_name(self.dtype),
        )


def _drawn(
    pipeline: "Pipeline | ClassPipeline", request: GenerateRequest, after_step: Callable[..., None]
) -> PipelineOutput:
    """A complete request by whichever pipeline its model has."""
    of_tokens: dict[str, Any] = {
        "density": request.density, "guidance_density": request.guidance_density, "cache": request.cache
    }
    if isinstance(pipeline, Pipeline):
        assert request.prompt is not None  # `intake.accept` has seen to it
        return pipeline(
            request.prompt, request.negative_prompt, request.width, request.height, request.num_inference_steps,
            request.guidance_scale, request.seed, request.num_images, callback=after_step, **of_tokens,
        )
    assert request.class_label is not None
    return pipeline(
        request.class_label, request.width, request.height, request.num_inference_steps, request.guidance_scale,
        request.seed, request.num_images, callback=after_step, **of_tokens,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError):  # torch's words for a name it does not know, and for a device it lacks
        raise RequestError("device", f"device is {name!r}; torch has no such device here, so use cpu.") from None


def _watcher(on_progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Callable[..., None]:
    def after_step(step: int, num_steps: int, clean: Tensor | None = None) -> None:
        preview = None if clean is None else to_images(clean[:1])[0]
        if preview is not None:
            preview.thumbnail((256, 256))
        on_progress(Progress(phase="sample", step=step, num_steps=num_steps, preview=preview))
        if step < num_steps and cancelled():
            raise Cancelled

    return after_step


def _what_to_lower(request: GenerateRequest) -> str:
    return (f"There was not enough memory for {request.num_images} pictures of {request.width} x {request.height}; "
            "lower num_images, width or height.")
