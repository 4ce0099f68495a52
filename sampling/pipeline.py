"""Prompt to pixels: a diffusers pipeline over our transformer.

Shape suffixes: B pictures, c channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.model import DiT
from mezzotint.dit.packed_linears import packed_linears
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.conditioning import Fixed
from mezzotint.sampling.guidance import guide
from mezzotint.sampling.guided_steps import GuidedSteps, RunPass, begin_steps
from mezzotint.sampling.plan import noise_times
from mezzotint.sampling.precision import fastest_dtype
from mezzotint.sampling.quiet_loading import quiet_loading
from mezzotint.sampling.request import MAX_IMAGES, MAX_SEED, RequestError
from mezzotint.sampling.text import EMBEDDED, EncodedText, TextEncoder

StepCallback = Callable[[int, int, Tensor], None]
"""Called after each step with (steps done, number of steps, predicted clean pictures [B, c, H, W] in [-1, 1])."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOutput:
    """Pictures, the seed of each, and what the caller should know (a prompt that was cut, say).

    flops: what the network computed for all pictures. module_passes: how often its sparse-dense modules ran, counted
    over pictures, steps and branches of guidance; None for a network without segments.
    """

    images: list[Image.Image]
    seeds: list[int]
    warnings: list[str]
    flops: int
    module_passes: int | None


class Pipeline(DiffusionPipeline):
    """Draws pictures from prompts. `Pipeline.from_pretrained("emoji-256")("a red apple", seed=7).images[0]`."""

    def __init__(
        self,
        transformer: DiT,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder_name: str = EMBEDDED,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 25,
    ) -> None:
        """guidance_scale and num_inference_steps are the model's defaults, saved in model_index.json."""
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(
            text_encoder_name=text_encoder_name,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )
        self._text_encoder: TextEncoder | None = None

    def register_modules(self, **kwargs: Any) -> None:
        """As in diffusers, but it would take our folder dit/ for its own pipeline of that name."""
        super().register_modules(**kwargs)
        self.register_to_config(transformer=(DiT.__module__, DiT.__name__))

    @classmethod
    def from_pretrained(cls, name: str, dtype: torch.dtype | None = None, **kwargs: Any) -> "Pipeline":
        """Load a model by name, or from a folder. `dtype` None takes what is fastest on the CPU.

        Raises RequestError (field "model") when there is no such model.
        """
        card = find_model(str(name))
        _ = card.text_config  # refused before a weight is read
        folder = card.folder
        with quiet_loading():
            return super().from_pretrained(str(folder), dtype=dtype or fastest_dtype("cpu"), **kwargs)

    @property
    def text_encoder(self) -> TextEncoder:
        """Loaded when it is first used."""
        if self._text_encoder is None:
            self._text_encoder = TextEncoder(self.config.text_encoder_name, self.device)
        return self._text_encoder

    def use_text_encoder(self, encoder: TextEncoder) -> None:
        """Share an encoder that is loaded already."""
        self._text_encoder = encoder

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        num_images: int = 1,
        callback: StepCallback | None = None,
        batch_size: int = 1,
        density: str | None = None,
        guidance_density: str | None = None,
        cache: str | None = None,
        fixed: Fixed | None = None,
    ) -> PipelineOutput:
        """Draw `num_images` pictures of each prompt.

        width, height: pixels, multiples of the model's patch; None is the model's own size.
        seed: one number, and picture i gets seed + i; or one a picture; None draws one.
        callback: see StepCallback; what it raises ends the drawing (a cancel, say).
        batch_size: pictures in one pass of the network. With 1 a picture is the same to the last bit whatever
            else is drawn with it; larger batches are faster, and round differently in bf16.
        density: how many tokens a model with segments keeps: "full" (also None), "balanced", "fast", or a pair of
            pruning rates such as "0.61-0.86".
        guidance_density: that of the branch without the prompt: "same" (also None), one of those above, or "skip".
        cache: a step cache for a model with segments: "off" (also None), "first-block", "taylor"; the last two with a
            number if you like, "first-block:0.05" and "taylor:4".
        fixed: values in [-1, 1] that every picture keeps, such as given panels; only the others are drawn.
        Raises RequestError naming the argument, its value and its range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [p for p in prompts for _ in range(num_images)]
        shape = self.transformer.shape
        size = _size(shape, height or shape.sample_size, width or shape.sample_size)
        if fixed is not None:
            fixed.check_size(size)
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        seeds, grid = draw_seeds(seed, len(prompts)), shape.grid(*size)
        guided = begin_steps(
            shape, density, guidance_density, cache, guided=scale != 1, num_steps=steps, grid=grid,
            num_pictures=len(prompts),
        )
        text = self._encode(prompts, negative_prompt or "", guided=scale != 1)
        noise = torch.stack([self._noise(s, size) for s in seeds])
        with packed_linears(self.transformer):
            pictures = self._denoise(noise, text, guided, scale, callback, batch_size, fixed)
        warnings = _cut_warnings(prompts, text.lengths[: len(prompts)], shape.max_text_tokens)
        return PipelineOutput(
            images=to_images(pictures), seeds=seeds, warnings=warnings, flops=guided.flops(shape, grid),
            module_passes=None if shape.segments is None else guided.module_passes,
        )

    def _encode(self, prompts: list[str], negative: str, guided: bool) -> EncodedText:
        """The prompts, followed by as many negative ones when guidance runs."""
        wanted = prompts + [negative] * len(prompts) if guided else prompts
        return self.text_encoder.encode(wanted, self.transformer.shape.max_text_tokens)

    def _noise(self, seed: int, size: tuple[int, int]) -> Tensor:
        """Noise of one picture, drawn on the CPU so that a seed survives a change of device and of batch."""
        shape = self.transformer.shape
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape.in_channels, *size, generator=generator) * shape.noise_scale

    def _denoise(
        self, noise: Tensor, text: EncodedText, guided: GuidedSteps, scale: float,
        callback: StepCallback | None, batch_size: int, fixed: Fixed | None,
    ) -> Tensor:
        """Pictures [B, c, H, W]."""
        x, num_steps = noise.to(self.device), guided.num_steps
        # Even times: the scheduler shifts them itself.
        self.scheduler.set_timesteps(sigmas=noise_times(num_steps), device=self.device)
        for step, timestep in enumerate(self.scheduler.timesteps):
            t = timestep / self.scheduler.config.num_train_timesteps
            run = self._runner(x, t, text)
            batches = torch.arange(len(x)).split(batch_size)
            prediction = torch.cat([guide(*guided.predict(step, some.tolist(), run), scale=scale) for some in batches])
            clean, velocity = self._clean_and_velocity(prediction, x, t)
            x = self.scheduler.step(velocity, timestep, x, return_dict=False)[0]
            if fixed is not None:
                x = fixed.hold_flow(x, noise.to(x), float(self.scheduler.sigmas[step + 1]))
                clean = fixed.hold_flow(clean, clean, 0.0)
            if callback is not None:
                callback(step + 1, num_steps, clean)
        return x

    def _runner(self, x: Tensor, t: Tensor, text: EncodedText) -> RunPass:
        """What runs the network on some rows; the text holds the prompts, then the negative ones if any."""

        def run(rows: list[int], grid: Grid | None, module_pass: ModulePass | None) -> Tensor:
            pictures = [row % len(x) for row in rows]
            return self.transformer(
                x[pictures], t.expand(len(rows)), text.tokens[rows], text.pooled[rows], text.mask[rows],
                grid=grid, module_pass=module_pass,
            ).float()

        return run

    def _clean_and_velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity dx/dt = noise - picture, with x = (1 - t) picture + t noise."""
        if self.transformer.shape.prediction == "v":
            return x - t * prediction, prediction
        return prediction, (x - prediction) / t  # no clamp here: the last step has to land on the picture


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] to PIL."""
    values = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(v) for v in values.permute(0, 2, 3, 1).cpu().numpy()]


def _size(shape: DiTConfig, height: int, width: int) -> tuple[int, int]:
    try:
        shape.grid(height, width)
    except ValueError as error:
        raise RequestError(str(error).split()[0], str(error)) from None
    return height, width


def draw_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """The seeds of `count` pictures from the first one, from all, or from none. Raises RequestError (field "seed")."""
    if seed is None:
        seed = int(torch.randint(0, MAX_SEED - MAX_IMAGES, (1,)))
    if isinstance(seed, int):
        return [seed + i for i in range(count)]
    if len(seed) != count:
        raise RequestError("seed", f"seed has {len(seed)} numbers for {count} pictures; give one, or one a picture.")
    return list(seed)


def _cut_warnings(prompts: list[str], lengths: list[int], limit: int) -> list[str]:
    return [
        f"the prompt has {n} tokens; the model reads the first {limit} one by one and the rest as a whole"
        for _, n in sorted({(p, n) for p, n in zip(prompts, lengths, strict=True)})
        if n > limit
    ]
