"""Settings from YAML to frozen dataclasses, whatever they are: unknown keys and values of a wrong kind are refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml


class ConfigError(ValueError):
    """A setting is unknown or out of range; the text names it, its value and what is allowed."""


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError naming a setting, its value and what is allowed, unless it holds."""
    if not holds:
        raise ConfigError(f"{name} is {value}; it must be {allowed}.")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file, with "key.sub=value" overrides (values in YAML). Raises ConfigError."""
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
    return values


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


def build(kind: type, values: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass of nested mappings. where: what its settings are called in errors, "" or "optim.".

    Raises ConfigError on an unknown key or a bad value.
    """
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
        return build(hint, value, f"{name}.")  # type: ignore[arg-type]
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
    tuple[int, ...]: ("a list of whole numbers", _each(_to_int)),
    tuple[str, ...]: ("a list of texts", _each(_only(str))),
}
