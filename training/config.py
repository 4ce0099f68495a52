"""A training run's settings: frozen dataclasses, read from YAML, unknown keys refused."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mezzotint.dit.config import DiTConfig


class ConfigError(ValueError):
    """A setting is unknown or out of range; the text names it, its value and what is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """path: a folder made by `datasets` (save_to_disk), an imagefolder with metadata.jsonl, or a Hub id.
    caption_weights: how often the 1st, 2nd, ... caption of a picture is drawn; the last weight also stands
        for every further caption.
    caption_dropout: share of pictures trained without a prompt, which guidance needs.
    balance: pictures are drawn with probability count(label) ** -balance; 0 takes them all alike.
    """

    path: str = "data/emoji"
    caption_weights: tuple[float, ...] = (1.0,)
    caption_dropout: float = 0.1
    balance: float = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Flow matching: t ~ sigmoid(Normal(t_mean, t_std)), t = 1 is noise; velocity loss with t clamped at min_t."""

    t_mean: float = 0.4
    t_std: float = 1.0
    min_t: float = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Muon for the 2-D matrices of the blocks, AdamW for all else; linear warm-up, constant, linear to 0."""

    muon_lr: float = 2e-3
    adamw_lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    decay_fraction: float = 0.4
    grad_clip: float = 1.0
    ema_decay: float = 0.995


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Sample grids while training: every `every_steps` steps (0 for none), from the EMA weights."""

    every_steps: int = 400
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    prompts: tuple[str, ...] = ("red apple", "cat face", "woman firefighter", "red heart")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run. batch_size is the whole batch over all processes; dtype is "bf16" (weights in bf16 with fp32
    master copies) or "fp32"."""

    name: str = "run"
    seed: int = 0
    dtype: str = "bf16"
    batch_size: int = 128
    max_steps: int = 2000
    checkpoint_minutes: float = 5.0
    gradient_checkpointing: bool = False
    model: DiTConfig = field(default_factory=DiTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        _require(self.dtype in ("bf16", "fp32"), "dtype", self.dtype, "bf16 or fp32")
        for name in ("batch_size", "max_steps", "checkpoint_minutes"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        _require(0 <= self.data.caption_dropout < 1, "data.caption_dropout", self.data.caption_dropout, "in [0, 1)")
        _require(bool(self.data.caption_weights) and all(w >= 0 for w in self.data.caption_weights)
                 and sum(self.data.caption_weights) > 0,
                 "data.caption_weights", self.data.caption_weights, "numbers >= 0, not all 0")
        _require(self.objective.t_std > 0, "objective.t_std", self.objective.t_std, "more than 0")
        _require(0 < self.objective.min_t < 1, "objective.min_t", self.objective.min_t, "between 0 and 1")
        _require(0 <= self.optim.decay_fraction <= 1, "optim.decay_fraction", self.optim.decay_fraction, "in [0, 1]")
        _require(0 <= self.optim.ema_decay < 1, "optim.ema_decay", self.optim.ema_decay, "in [0, 1)")


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; it must be {allowed}.")


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe and apply "key.sub=value" overrides (values in YAML). Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"--config is {path}; there is no such file.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings.")
    for override in overrides:
        _apply(values, override)
    return from_mapping(values)


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """Build a config from nested mappings. Raises ConfigError on an unknown key or a bad value."""
    return _build(TrainConfig, values, "")


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Plain nested values, as JSON and YAML hold them."""
    return asdict(config)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set is {override!r}; write it as key=value, such as optim.muon_lr=1e-3.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set is {override!r}; {parent} holds no further settings.")
    values[last] = yaml.safe_load(text)


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.rstrip('.')} is {values!r}; it must be a mapping of settings.")
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}{key} is not a setting; the settings there are {', '.join(known)}.")
    converted = {key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from None


def _convert(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, f"{name}.")  # type: ignore[arg-type]
    try:
        if hint is float:
            return float(value)
        if hint is int and int(value) != float(value):
            raise ValueError
        if hint in (int, bool, str):
            return hint(value) if not (hint is bool and not isinstance(value, bool)) else _not_bool()
        if str(hint).startswith("tuple"):
            inner = str if "str" in str(hint) else float
            return tuple(inner(v) for v in value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}.") from None
    return value


def _not_bool() -> bool:
    raise ValueError
