"""A model folder described from its JSON, without loading a weight: by text or by class labels. No torch here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.diffusers_settings import DIT, diffusers_class, dit_settings
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.sampling.class_labels import Classes
from mezzotint.sampling.request import RequestError

SCHEDULERS = (
    "DDIMScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
)
"""diffusers' schedulers that a class-conditional model may bring: those that add no noise of their own, so that a seed
is a picture, and take as many steps as they are asked for."""

DIT_PIPELINE_GUIDANCE, DIT_PIPELINE_STEPS = 4.0, 50
"""What diffusers' DiTPipeline takes where a folder names nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What can be known of a model before it is loaded.

    guidance_scale and num_inference_steps are the defaults its makers measured to be best; time_shift is the
    scheduler's: t becomes shift * t / (1 + (shift - 1) * t).
    classes: of a model that draws by class labels; None for one that draws by text.
    pixels_per_value: sides in pixels over sides of what the network works on, which is more than 1 for latents.
    """

    name: str
    folder: Path
    config: DiTConfig | ClassDiTConfig
    guidance_scale: float
    num_inference_steps: int
    time_shift: float = 1.0
    classes: Classes | None = None
    pixels_per_value: int = 1

    @property
    def sample_size(self) -> int:
        """Side of the training pictures in pixels."""
        return self.config.sample_size * self.pixels_per_value

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size * self.pixels_per_value

    def grid(self, height: int, width: int) -> Grid:
        """Token rows and columns of a picture of height x width pixels, both multiples of patch_size."""
        return self.config.grid(height // self.pixels_per_value, width // self.pixels_per_value)

    @property
    def text_config(self) -> DiTConfig:
        """The settings of a text-conditioned network. Raises RequestError (field "model") for another one."""
        if not isinstance(self.config, DiTConfig):
            raise RequestError("model", f"model is {self.name!r}; it draws by class labels, and a model that draws "
                                        "by text is needed here.")
        return self.config


def read_card(name: str, folder: Path) -> ModelCard:
    """The card of a folder in diffusers' layout. Raises RequestError (field "model") where its files cannot be read,
    or are not of a kind that can be drawn with."""
    index = read_json(name, folder / "model_index.json")
    config = read_json(name, folder / "transformer" / "config.json")
    try:
        kind = diffusers_class(config)
        if kind in (None, "DiT"):
            return _text_card(name, folder, index, config)
        if kind in ("ClassDiT", DIT):
            settings = dit_settings(config) if kind == DIT else config
            return _class_card(name, folder, index, ClassDiTConfig.from_mapping(settings))
        raise ValueError(f"transformer holds a {kind}, and only DiT, ClassDiT and {DIT} can be drawn with.")
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        reason = f"its configuration is not one of ours: {str(error).rstrip('.')}."
        raise RequestError("model", f"model is {name!r}; {reason}") from None


def _text_card(name: str, folder: Path, index: Mapping[str, Any], config: Mapping[str, Any]) -> ModelCard:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    schedule = read_json(name, scheduler) if scheduler.is_file() else {}
    return ModelCard(
        name=name,
        folder=folder,
        config=DiTConfig.from_mapping(config),
        guidance_scale=float(index.get("guidance_scale", 3.0)),
        num_inference_steps=int(index.get("num_inference_steps", 25)),
        time_shift=float(schedule.get("shift", 1.0)),
    )


def _class_card(name: str, folder: Path, index: Mapping[str, Any], config: ClassDiTConfig) -> ModelCard:
    autoencoder = read_json(name, folder / "vae" / "config.json")
    channels = autoencoder.get("latent_channels", 4)
    if channels != config.in_channels:
        raise ValueError(f"vae has {channels} latent channels, and the network takes {config.in_channels}")
    _check_scheduler(read_json(name, folder / "scheduler" / "scheduler_config.json"))
    return ModelCard(
        name=name,
        folder=folder,
        config=config,
        guidance_scale=float(index.get("guidance_scale", DIT_PIPELINE_GUIDANCE)) if config.null_class else 1.0,
        num_inference_steps=int(index.get("num_inference_steps", DIT_PIPELINE_STEPS)),
        classes=Classes.of(config.num_classes, index.get("id2label")),
        pixels_per_value=2 ** (len(autoencoder.get("block_out_channels", (64,))) - 1),
    )


def _check_scheduler(config: Mapping[str, Any]) -> None:
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler is a {name}; it must be one of {', '.join(SCHEDULERS)}")
    if str(config.get("algorithm_type", "")).startswith("sde"):
        raise ValueError(f"the scheduler's algorithm_type is {config['algorithm_type']}; it must be one without noise "
                         "of its own, such as dpmsolver++")


def read_json(name: str, path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises RequestError (field "model") that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError("model", f"model is {name!r}; {path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError("model", f"model is {name!r}; {path} must hold a JSON object.")
    return value
