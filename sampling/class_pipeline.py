"""Class labels to pixels: a diffusers pipeline over a class-conditional DiT and an autoencoder's latents.

It computes what diffusers' DiTPipeline does: guidance over all latent channels (DiT's own code guides the first three
of four), the predicted noise without the learned variance, and the scheduler of the folder. What differs: the token
density of each step, and a guidance scale below 1 is a scale like any other (there it switches guidance off).

Shape suffixes: B pictures, c latent channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor

from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.checkpoints.sources import load_pretrained
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.density import Grid
from mezzotint.dit.packed_linears import packed_linears
from mezzotint.sampling.catalog import ModelCard, find_model
from mezzotint.sampling.class_labels import Classes
from mezzotint.sampling.guidance import guide
from mezzotint.sampling.guided_steps import GuidedSteps, RunPass, begin_steps
from mezzotint.sampling.model_folder import DIT_PIPELINE_GUIDANCE, DIT_PIPELINE_STEPS, SCHEDULERS, read_json
from mezzotint.sampling.pipeline import PipelineOutput, draw_seeds, to_images
from mezzotint.sampling.precision import fastest_dtype
from mezzotint.sampling.quiet_loading import quiet_loading
from mezzotint.sampling.request import RequestError

Label = int | str
"""The number of a class, or one of its names."""

StepCallback = Callable[[int, int], None]
"""Called after each step with (steps done, number of steps)."""


class ClassPipeline(DiffusionPipeline):
    """Draws pictures of classes. `ClassPipeline.from_pretrained(FOLDER)("golden retriever", seed=7).images[0]`."""

    def __init__(
        self,
        transformer: ClassDiT,
        vae: AutoencoderKL,
        scheduler: Any,
        id2label: dict[int, str] | None = None,
        guidance_scale: float = DIT_PIPELINE_GUIDANCE,
        num_inference_steps: int = DIT_PIPELINE_STEPS,
    ) -> None:
        """scheduler: one of diffusers' that `model_folder.SCHEDULERS` names. id2label: names of the classes.
        guidance_scale and num_inference_steps are the model's defaults. The last three are saved in model_index.json.
        """
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label=id2label or {}, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps
        )
        self.classes = Classes.of(transformer.shape.num_classes, id2label)

    def register_modules(self, **kwargs: Any) -> None:
        """As in diffusers, but it would take our folder dit/ for its own pipeline of that name."""
        super().register_modules(**kwargs)
        self.register_to_config(transformer=(ClassDiT.__module__, ClassDiT.__name__))

    @classmethod
    def from_pretrained(cls, name: str, dtype: torch.dtype | None = None) -> "ClassPipeline":
        """Load a model by name, or from a folder of this pipeline or of diffusers' DiTPipeline, such as a copy of
        facebook/DiT-XL-2-256. `dtype` None takes what is fastest on the CPU.

        Raises RequestError (field "model") when there is no such model, or its files do not fit each other.
        """
        card, dtype = find_model(str(name)), dtype or fastest_dtype("cpu")
        if card.classes is None:
            raise RequestError("model", f"model is {card.name!r}; it draws by text, so load it with Pipeline.")
        try:
            with quiet_loading():
                transformer = load_pretrained(card.folder / "transformer")
                vae = AutoencoderKL.from_pretrained(card.folder / "vae", local_files_only=True)
            for network in (transformer, vae):  # torch's own `to`: diffusers' warns where there is nothing to warn of
                torch.nn.Module.to(network, dtype=dtype).eval()
            return cls(
                transformer, vae, _scheduler(card), id2label=dict(card.classes.names),
                guidance_scale=card.guidance_scale, num_inference_steps=card.num_inference_steps,
            )
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RequestError("model", f"model is {card.name!r}; it cannot be loaded: {reason}") from None

    @torch.no_grad()
    def __call__(
        self,
        class_label: Label | Sequence[Label],
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
    ) -> PipelineOutput:
        """Draw `num_images` pictures of each class.

        class_label: the number of a class or a name that the model has for it; several in a list.
        width, height: pixels, multiples of the model's patch; None is the model's own size.
        The other arguments are those of `Pipeline.__call__`; callback is not handed a picture, since the latents
        under way would have to be decoded for it.
        Raises RequestError naming the argument, its value and its range.
        """
        several = [class_label] if isinstance(class_label, int | str) else list(class_label)
        labels = [self.classes.number(label, "this model") for label in several for _ in range(num_images)]
        size, shape = self._latent_size(height, width), self.transformer.shape
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if scale != 1 and not shape.null_class:
            raise RequestError("guidance_scale", f"guidance_scale is {scale:g}; this model has no label for no class, "
                                                 "so it must be 1.")
        seeds, grid = draw_seeds(seed, len(labels)), shape.grid(*size)
        guided = begin_steps(
            shape, density, guidance_density, cache, guided=scale != 1, num_steps=steps, grid=grid,
            num_pictures=len(labels),
        )
        noise = torch.stack([_noise(one, shape.in_channels, size) for one in seeds])
        with packed_linears(self.transformer):
            latents = self._denoise(noise, torch.tensor(labels), guided, scale, callback, batch_size)
        return PipelineOutput(
            images=to_images(self._decode(latents)), seeds=seeds, warnings=[], flops=guided.flops(shape, grid),
            module_passes=None if shape.segments is None else guided.module_passes,
        )

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        shape, factor = self.transformer.shape, self.pixels_per_latent
        own, patch = shape.sample_size * factor, shape.patch_size * factor
        for name, side in (("height", height), ("width", width)):
            if side is not None and (side <= 0 or side % patch):
                raise RequestError(name, f"{name} is {side}; it must be a positive multiple of {patch} pixels.")
        return (height or own) // factor, (width or own) // factor

    def _denoise(
        self, noise: Tensor, labels_B: Tensor, guided: GuidedSteps, scale: float,
        callback: StepCallback | None, batch_size: int,
    ) -> Tensor:
        """Latents [B, c, H, W] in fp32."""
        x, labels_B, num_steps = noise.to(self.device), labels_B.to(self.device), guided.num_steps
        self.scheduler.set_timesteps(num_steps, device=self.device)
        for step, timestep in enumerate(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(x, timestep)
            run = self._runner(given, timestep, labels_B)
            batches = torch.arange(len(x)).split(batch_size)
            predicted = torch.cat([guide(*guided.predict(step, some.tolist(), run), scale=scale) for some in batches])
            x = self.scheduler.step(predicted, timestep, x, return_dict=False)[0]
            if callback is not None:
                callback(step + 1, num_steps)
        return x

    def _runner(self, x: Tensor, timestep: Tensor, labels_B: Tensor) -> RunPass:
        """What predicts the noise of some rows, fp32; the branch of guidance has the label for no class."""
        shape = self.transformer.shape
        both = torch.cat([labels_B, torch.full_like(labels_B, shape.num_classes)])

        def run(rows: list[int], grid: Grid | None, module_pass: ModulePass | None) -> Tensor:
            pictures = [row % len(x) for row in rows]
            out = self.transformer(
                x[pictures], timestep.expand(len(rows)), both[rows], grid=grid, module_pass=module_pass
            )
            return out[:, : shape.in_channels].float()

        return run

    def _decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] about [-1, 1], fp32; one by one, since decoding takes the most memory of all."""
        config = self.vae.config
        plain = latents / config.scaling_factor + (config.shift_factor or 0)
        return torch.cat([self.vae.decode(one.to(self.vae.dtype)).sample.float() for one in plain.split(1)])


def _noise(seed: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Noise of one picture, drawn on the CPU so that a seed survives a change of device and of batch."""
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(seed))


def _scheduler(card: ModelCard) -> Any:
    """By the name in its configuration, which `find_model` has checked to be one of SCHEDULERS."""
    name = read_json(card.name, card.folder / "scheduler" / "scheduler_config.json")["_class_name"]
    assert name in SCHEDULERS
    return getattr(diffusers, name).from_pretrained(card.folder / "scheduler", local_files_only=True)
