"""Recipes: what is read, what is refused, and by which words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import mezzotint.training.config as config_module
from mezzotint.dit.config import DiTConfig
from mezzotint.training.config import (
    ConfigError,
    DataConfig,
    OptimConfig,
    TrainConfig,
    from_mapping,
    load_config,
    to_mapping,
)

RECIPES = sorted((Path(config_module.__file__).parent / "recipes").glob("*.yaml"))


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_there_are_recipes() -> None:
    assert "emoji-256.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_shipped_recipe_loads_and_holds_what_it_says(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    held = yaml.safe_load(yaml.safe_dump(to_mapping(load_config(path))))
    for key, value in values.items():
        kept = {name: held[key][name] for name in value} if isinstance(value, dict) else held[key]
        assert kept == value
    assert held["name"] == path.stem


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = TrainConfig(
        name="odd", seed=3, dtype="fp32", batch_size=6, max_steps=9, checkpoint_minutes=0.25,
        gradient_checkpointing=True, model=DiTConfig(noise_scale=3.5, norm="rms", qk_norm=False),
        data=DataConfig(path="some/where", caption_weights=(0.5, 0.25), num_workers=2),
        optim=OptimConfig(betas=(0.8, 0.9), muon_lr=1e-5),
    )
    assert load_config(recipe(tmp_path, yaml.safe_dump(to_mapping(config)))) == config


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(recipe(tmp_path, "")) == TrainConfig()


def test_overrides_reach_any_depth_and_win(tmp_path: Path) -> None:
    path = recipe(tmp_path, "batch_size: 16\noptim:\n  muon_lr: 0.5\n  weight_decay: 0.2\n")
    config = load_config(path, [
        "batch_size=8", "optim.muon_lr=1e-3", "model.norm=rms", "data.caption_weights=[1, 2]",
        "samples.prompts=[a cat, a dog]", "gradient_checkpointing=true", "max_steps=7", "max_steps=9",
    ])
    assert (config.batch_size, config.max_steps, config.gradient_checkpointing) == (8, 9, True)
    assert config.optim == replace(OptimConfig(), muon_lr=1e-3, weight_decay=0.2)
    assert config.model.norm == "rms"
    assert config.data.caption_weights == (1.0, 2.0)
    assert config.samples.prompts == ("a cat", "a dog")


@pytest.mark.parametrize(("values", "name", "neighbour"), [
    ({"batchsize": 4}, "batchsize", "batch_size"),
    ({"optim": {"lr": 1}}, "optim.lr", "muon_lr"),
    ({"model": {"depth": 3}}, "model.depth", "num_layers"),
    ({"data": {"paths": "x"}}, "data.paths", "caption_weights"),
    ({"samples": {"every": 3}}, "samples.every", "every_steps"),
    ({"objective": {7: 3}}, "objective.7", "t_mean"),
])
def test_an_unknown_key_is_named_beside_the_known_ones(values: dict[str, Any], name: str, neighbour: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is not a setting; the settings there are .*{neighbour}"):
        from_mapping(values)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"batch_size": "many"}, "batch_size is 'many'; it must be a whole number."),
    ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number."),
    ({"batch_size": True}, "batch_size is True; it must be a whole number."),
    ({"max_steps": float("inf")}, "max_steps is inf; it must be a whole number."),
    ({"max_steps": float("nan")}, "max_steps is nan; it must be a whole number."),
    ({"optim": {"muon_lr": "fast"}}, "optim.muon_lr is 'fast'; it must be a number."),
    ({"optim": {"muon_lr": None}}, "optim.muon_lr is None; it must be a number."),
    ({"optim": {"betas": 0.9}}, "optim.betas is 0.9; it must be a list of two numbers."),
    ({"data": {"caption_weights": "12"}}, "data.caption_weights is '12'; it must be a list of numbers."),
    ({"samples": {"prompts": "a cat"}}, "samples.prompts is 'a cat'; it must be a list of texts."),
    ({"gradient_checkpointing": 1}, "gradient_checkpointing is 1; it must be true or false."),
    ({"data": {"path": None}}, "data.path is None; it must be a word or a text"),
    ({"name": 7}, "name is 7; it must be a word or a text (in quotes where YAML reads something else)."),
    ({"model": 3}, "model is 3; it must be a mapping of settings."),
    ({"data": None}, "data is None; it must be a mapping of settings."),
])
def test_a_value_of_the_wrong_kind_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_mapping(values)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"dtype": "fp16"}, "dtype is fp16; it must be bf16 or fp32."),
    ({"batch_size": 0}, "batch_size is 0; it must be more than 0."),
    ({"seed": -1}, "seed is -1; it must be 0 or more."),
    ({"checkpoint_minutes": 0}, "checkpoint_minutes is 0.0; it must be more than 0."),
    ({"data": {"caption_dropout": 1}}, "data.caption_dropout is 1.0; it must be in [0, 1)."),
    ({"data": {"caption_weights": []}}, "data.caption_weights is (); it must be numbers >= 0, not all 0."),
    ({"data": {"caption_weights": [0, 0]}}, "data.caption_weights is (0.0, 0.0); it must be numbers >= 0"),
    ({"data": {"balance": -0.1}}, "data.balance is -0.1; it must be 0 or more."),
    ({"data": {"num_workers": -1}}, "data.num_workers is -1; it must be 0 or more."),
    ({"objective": {"t_std": 0}}, "objective.t_std is 0.0; it must be more than 0."),
    ({"objective": {"t_mean": "nan"}}, "objective.t_mean is nan; it must be a finite number."),
    ({"objective": {"min_t": 1}}, "objective.min_t is 1.0; it must be between 0 and 1."),
    ({"optim": {"muon_lr": float("nan")}}, "optim.muon_lr is nan; it must be more than 0."),
    ({"optim": {"adamw_lr": -1e-3}}, "optim.adamw_lr is -0.001; it must be more than 0."),
    ({"optim": {"grad_clip": 0}}, "optim.grad_clip is 0.0; it must be more than 0."),
    ({"optim": {"betas": [0.9]}}, "optim.betas is (0.9,); it must be two numbers in [0, 1)."),
    ({"optim": {"betas": [0.9, 1]}}, "optim.betas is (0.9, 1.0); it must be two numbers in [0, 1)."),
    ({"optim": {"ema_decay": 1}}, "optim.ema_decay is 1.0; it must be in [0, 1)."),
    ({"optim": {"decay_fraction": 1.1}}, "optim.decay_fraction is 1.1; it must be in [0, 1]."),
    ({"samples": {"prompts": []}}, "samples.prompts is (); it must be one prompt or more"),
    ({"model": {"sample_size": 100}}, "model.sample_size is 100; it must be a multiple of patch_size 32."),
    ({"model": {"norm": "batch"}}, "model.norm is 'batch'; it must be one of layer, rms."),
    ({"model": {"num_heads": 3}}, "model.hidden_size is 320; it must be a multiple of 4 * num_heads = 12"),
])
def test_a_value_out_of_range_is_named_with_the_range(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_mapping(values)
    assert str(raised.value).startswith(sentence)


def test_no_prompts_are_needed_where_nothing_is_drawn() -> None:
    assert from_mapping({"samples": {"every_steps": 0, "prompts": []}}).samples.prompts == ()


@pytest.mark.parametrize(("override", "sentence"), [
    ("batch_size", "--set is 'batch_size'; write it as key=value"),
    ("batch_size.inner=3", "--set is 'batch_size.inner=3'; batch_size holds no further settings."),
    ("data.path=[a", "--set is 'data.path=[a'; the value is not YAML"),
    ("model.depth=3", "model.depth is not a setting"),
    ("=3", " is not a setting"),
])
def test_a_bad_override_is_named(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(recipe(tmp_path, "batch_size: 4\n"), [override])
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("content", "reason"), [
    (b"batch_size: [1", "is not YAML"),
    (b"- 1\n- 2\n", "must hold a mapping"),
    (b"name: \xff\xfe", "is not YAML"),
])
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(path) in str(raised.value)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_in_place_of_a_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--config is {tmp_path}; it cannot be read"):
        load_config(tmp_path)


def test_settings_of_an_older_run_without_the_newer_keys_are_read() -> None:
    older = to_mapping(TrainConfig())
    del older["data"]["num_workers"]
    assert from_mapping(older) == TrainConfig()
