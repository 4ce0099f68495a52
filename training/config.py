"""A training run's settings: frozen dataclasses, read from YAML, unknown keys refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import inf
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
        for name in _MORE_THAN_0:
            _require(0 < self._value(name) < inf, name, self._value(name), "more than 0")
        for name in _NOT_NEGATIVE:
            _require(0 <= self._value(name) < inf, name, self._value(name), "0 or more")
        _require(0 <= self.data.caption_dropout < 1, "data.caption_dropout", self.data.caption_dropout, "in [0, 1)")
        weights = self.data.caption_weights
        _require(bool(weights) and all(0 <= w < inf for w in weights) and sum(weights) > 0,
                 "data.caption_weights", weights, "numbers >= 0, not all 0")
        _require(-inf < self.objective.t_mean < inf, "objective.t_mean", self.objective.t_mean, "a finite number")
        _require(0 < self.objective.min_t < 1, "objective.min_t", self.objective.min_t, "between 0 and 1")
        _require(len(self.optim.betas) == 2 and all(0 <= b < 1 for b in self.optim.betas),
                 "optim.betas", self.optim.betas, "two numbers in [0, 1)")
        _require(0 <= self.optim.decay_fraction <= 1, "optim.decay_fraction", self.optim.decay_fraction, "in [0, 1]")
        _require(0 <= self.optim.ema_decay < 1, "optim.ema_decay", self.optim.ema_decay, "in [0, 1)")
        _require(bool(self.samples.prompts) or not self.samples.every_steps,
                 "samples.prompts", self.samples.prompts, "one prompt or more, unless samples.every_steps is 0")

    def _value(self, name: str) -> float:
        section, _, key = name.rpartition(".")
        return getattr(getattr(self, section) if section else self, key)


_MORE_THAN_0 = (
    "batch_size", "max_steps", "checkpoint_minutes", "objective.t_std", "optim.muon_lr", "optim.adamw_lr",
    "optim.grad_clip", "samples.num_inference_steps",
)
_NOT_NEGATIVE = (
    "seed", "data.balance", "data.num_workers", "optim.weight_decay", "optim.warmup_steps", "samples.every_steps",
    "samples.guidance_scale",
)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; it must be {allowed}.")


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe and apply "key.sub=value" overrides (values in YAML). Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"--config is {path}; there is no such file.") from None
    except OSError as error:
        raise ConfigError(f"--config is {path}; it cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config is {path}; it is not YAML ({_one_line(error)}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config is {path}; it must hold a mapping of settings, such as `batch_size: 128`.")
    for override in overrides:
        _apply(values, override)
    return from_mapping(values)


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """Build a config from nested mappings. Raises ConfigError on an unknown key or a bad value."""
    return _build(TrainConfig, values, "")


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """Plain nested values, as JSON and YAML hold them."""
    return asdict(config)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set is {override!r}; write it as key=value, such as optim.muon_lr=1e-3.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set is {override!r}; {parent} holds no further settings.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set is {override!r}; the value is not YAML ({_one_line(error)}).") from None


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
    convert = _CONVERTERS.get(hint)
    if convert is None:  # a choice of words, which the dataclass itself checks
        return value
    wanted, conversion = convert
    try:
        return conversion(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {value!r}; it must be {wanted}.") from None


def _to_float(value: Any) -> float:
    """YAML reads 1e-3 as a word, so words that are numbers pass."""
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _to_int(value: Any) -> int:
    number = _to_float(value)
    if int(number) != number:
        raise ValueError
    return int(value) if isinstance(value, int) else int(number)


def _only(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return check


def _each(conversion: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(conversion(v) for v in value)

    return convert


_CONVERTERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    float: ("a number", _to_float),
    int: ("a whole number", _to_int),
    bool: ("true or false", _only(bool)),
    str: ("a word or a text (in quotes where YAML reads something else)", _only(str)),
    tuple[float, ...]: ("a list of numbers", _each(_to_float)),
    tuple[float, float]: ("a list of two numbers", _each(_to_float)),
    tuple[str, ...]: ("a list of texts", _each(_only(str))),
}
