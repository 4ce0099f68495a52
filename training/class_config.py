"""The settings of a class-conditional run over latents."""

from dataclasses import dataclass, field
from typing import ClassVar

from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.training.config import RunConfig
from mezzotint.training.config_reading import require


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentDataConfig:
    """path: a folder of latents, made by `python -m mezzotint.training.encode_latents`.
    label_dropout: share of latents trained with the label for no class, which guidance needs.
    num_workers: processes that read ahead; 0 reads in the training process.
    """

    path: str = "data/latents"
    label_dropout: float = 0.1
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DDPMConfig:
    """DDPM with a learned variance, linear betas: see `ddpm_objective`."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSampleConfig:
    """Sample grids while training: every `every_steps` steps (0 for none), from the EMA weights, in the first of
    density.densities."""

    every_steps: int = 5000
    num_inference_steps: int = 50
    guidance_scale: float = 4.0
    class_labels: tuple[int, ...] = (207, 360, 387, 974, 88, 979, 417, 279)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTrainConfig(RunConfig):
    """A run of a class-conditional DiT over cached latents by DDPM."""

    MORE_THAN_0: ClassVar[tuple[str, ...]] = (*RunConfig.MORE_THAN_0, "samples.num_inference_steps")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *RunConfig.NOT_NEGATIVE, "data.num_workers", "samples.every_steps", "samples.guidance_scale",
    )

    family: str = "class"
    model: ClassDiTConfig = field(default_factory=ClassDiTConfig)
    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    objective: DDPMConfig = field(default_factory=DDPMConfig)
    samples: ClassSampleConfig = field(default_factory=ClassSampleConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        self.check_densities(self.model.segments)
        classes, dropout = self.model.num_classes, self.data.label_dropout
        require(classes > 0, "model.num_classes", classes, "more than 0")
        require(0 <= dropout < 1, "data.label_dropout", dropout, "in [0, 1)")
        require(not dropout or self.model.null_class, "data.label_dropout", dropout,
                "0 where model.null_class is false")
        require(self.density.time_shift == 1, "density.time_shift", self.density.time_shift,
                "1, since DDPM is sampled in even steps")
        objective = self.objective
        require(objective.num_timesteps > 1, "objective.num_timesteps", objective.num_timesteps, "more than 1")
        require(0 < objective.beta_start <= objective.beta_end < 1, "objective.beta_start", objective.beta_start,
                f"over 0 and at most objective.beta_end {objective.beta_end}, which must be under 1")
        labels = self.samples.class_labels
        require(all(0 <= label < classes for label in labels) and bool(labels or not self.samples.every_steps),
                "samples.class_labels", labels, f"classes from 0 to {classes - 1}, one or more unless "
                "samples.every_steps is 0")
