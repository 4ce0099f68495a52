"""A training run's settings: what all runs have, and those of a text-conditioned one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mezzotint.dit.config import DiTConfig
from mezzotint.sampling.density_presets import DENSITIES_IN_WORDS, density_schedule
from mezzotint.training.config_reading import ConfigError, build, read_recipe, require
from mezzotint.training.masking_config import MaskingConfig

if TYPE_CHECKING:
    from mezzotint.training.class_config import ClassTrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """path: a folder made by `datasets` (save_to_disk), an imagefolder with metadata.jsonl, or a Hub id.
    caption_weights: how often the 1st, 2nd, ... caption of a picture is drawn; the last weight also stands
        for every further caption.
    caption_dropout: share of pictures trained without a prompt, which guidance needs.
    balance: pictures are drawn with probability count(label) ** -balance; 0 takes them all alike.
    num_workers: processes that decode pictures ahead of their use, for a set larger than memory; 0 decodes in
        the training process and keeps what fits.
    """

    path: str = "data/emoji"
    caption_weights: tuple[float, ...] = (1.0,)
    caption_dropout: float = 0.1
    balance: float = 0.7
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Flow matching: t ~ sigmoid(Normal(t_mean, t_std)), t = 1 is noise; velocity loss with t clamped at min_t."""

    t_mean: float = 0.4
    t_std: float = 1.0
    min_t: float = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Muon for the 2-D matrices of the blocks, AdamW for all else; linear warm-up, constant, linear to 0.

    muon: False leaves all to AdamW.
    """

    muon: bool = True
    muon_lr: float = 2e-3
    adamw_lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    decay_fraction: float = 0.4
    grad_clip: float = 1.0
    ema_decay: float = 0.995


@dataclass(frozen=True, kw_only=True, slots=True)
class DensityConfig:
    """Token density, for a network with segments.

    densities: names or pairs of rates as a request has them ("full", "balanced", "fast", "0.61-0.86"); each step draws
        one of them, and one stair of it. None of them trains on the full grid alone.
    time_shift: the shift that the model will be sampled with, since a stair is a share of the denoising steps.
    sparse_share: where a dense model is cut at the start, see `recut`.
    """

    densities: tuple[str, ...] = ()
    time_shift: float = 1.0
    sparse_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Learn from another model's answers. teacher: its name or folder, "" for none. weight: share of the teacher's
    answer in what is learnt; the rest is the data's. hint_weight: of the distance between both networks' tokens behind
    each recovery block, for a teacher of the same depth and width; 0 for none."""

    teacher: str = ""
    weight: float = 1.0
    hint_weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Sample grids while training: every `every_steps` steps (0 for none), from the EMA weights."""

    every_steps: int = 400
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    prompts: tuple[str, ...] = ("red apple", "cat face", "woman firefighter", "red heart")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What every run has. Each family adds its model, data, objective and samples.

    family: "text" or "class". batch_size is the whole batch over all processes; dtype is "bf16" (weights in bf16 with
    fp32 master copies) or "fp32".
    """

    MORE_THAN_0: ClassVar[tuple[str, ...]] = (
        "batch_size", "max_steps", "checkpoint_minutes", "density.time_shift", "optim.muon_lr", "optim.adamw_lr",
        "optim.grad_clip",
    )
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("seed", "optim.weight_decay", "optim.warmup_steps")

    family: str = "text"
    name: str = "run"
    seed: int = 0
    dtype: str = "bf16"
    batch_size: int = 128
    max_steps: int = 2000
    checkpoint_minutes: float = 5.0
    gradient_checkpointing: bool = False
    density: DensityConfig = field(default_factory=DensityConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        require(self.dtype in ("bf16", "fp32"), "dtype", self.dtype, "bf16 or fp32")
        for name in self.MORE_THAN_0:
            require(0 < self._value(name) < inf, name, self._value(name), "more than 0")
        for name in self.NOT_NEGATIVE:
            require(0 <= self._value(name) < inf, name, self._value(name), "0 or more")
        require(len(self.optim.betas) == 2 and all(0 <= b < 1 for b in self.optim.betas),
                "optim.betas", self.optim.betas, "two numbers in [0, 1)")
        share = self.density.sparse_share
        require(0 <= share <= 1, "density.sparse_share", share, "in [0, 1]")
        require(0 <= self.optim.decay_fraction <= 1, "optim.decay_fraction", self.optim.decay_fraction, "in [0, 1]")
        require(0 <= self.optim.ema_decay < 1, "optim.ema_decay", self.optim.ema_decay, "in [0, 1)")

    def check_densities(self, segments: str | None) -> None:
        """Raise ConfigError unless each density is one, and a network in segments is there to take it."""
        for density in self.density.densities:
            try:
                density_schedule(density)
            except ValueError:
                require(False, "density.densities", self.density.densities, f"a list of {DENSITIES_IN_WORDS}")
        require(not self.density.densities or segments is not None, "model.segments", segments,
                "a layout such as '1 + 2x[1,3,1,0] + 1' where density.densities are given")

    def _value(self, name: str) -> float:
        section, _, key = name.rpartition(".")
        return getattr(getattr(self, section) if section else self, key)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(RunConfig):
    """A run of a text-conditioned DiT by flow matching."""

    MORE_THAN_0: ClassVar[tuple[str, ...]] = (
        *RunConfig.MORE_THAN_0, "objective.t_std", "samples.num_inference_steps"
    )
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *RunConfig.NOT_NEGATIVE, "data.balance", "data.num_workers", "samples.every_steps", "samples.guidance_scale",
        "distill.hint_weight",
    )

    model: DiTConfig = field(default_factory=DiTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        require(0 <= self.data.caption_dropout < 1, "data.caption_dropout", self.data.caption_dropout, "in [0, 1)")
        weights = self.data.caption_weights
        require(bool(weights) and all(0 <= w < inf for w in weights) and sum(weights) > 0,
                "data.caption_weights", weights, "numbers >= 0, not all 0")
        require(-inf < self.objective.t_mean < inf, "objective.t_mean", self.objective.t_mean, "a finite number")
        require(0 < self.objective.min_t < 1, "objective.min_t", self.objective.min_t, "between 0 and 1")
        require(0 <= self.distill.weight <= 1, "distill.weight", self.distill.weight, "in [0, 1]")
        require(not self.distill.hint_weight or not self.masking.ratio, "distill.hint_weight", self.distill.hint_weight,
                "0 where masking.ratio is over 0, since the teacher sees every token")
        self.check_densities(self.model.segments)
        bypass, layers = self.masking.bypass, self.model.num_layers
        require(bypass is None or (self.model.segments is None and bypass[1] <= layers), "masking.bypass_to",
                self.masking.bypass_to, f"at most model.num_layers, {layers}, and 0 where the model has segments")
        require(bool(self.samples.prompts) or not self.samples.every_steps,
                "samples.prompts", self.samples.prompts, "one prompt or more, unless samples.every_steps is 0")


def load_config(path: Path, overrides: Sequence[str] = ()) -> "TrainConfig | ClassTrainConfig":
    """Read a recipe and apply "key.sub=value" overrides (values in YAML); see `from_mapping`. Raises ConfigError."""
    return from_mapping(read_recipe(path, overrides))


def from_mapping(values: Mapping[str, Any]) -> "TrainConfig | ClassTrainConfig":
    """Build the config of a recipe's family from nested mappings. Raises ConfigError on an unknown key or bad value."""
    from mezzotint.training.class_config import ClassTrainConfig

    family = values.get("family", "text")
    kinds: dict[Any, type[TrainConfig] | type[ClassTrainConfig]] = {"text": TrainConfig, "class": ClassTrainConfig}
    if not isinstance(family, str) or family not in kinds:
        raise ConfigError(f"family is {family!r}; it must be one of {', '.join(kinds)}.")
    return build(kinds[family], values)


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Plain nested values, as JSON and YAML hold them."""
    return asdict(config)
