"""Training with kept tokens, in every combination that a recipe can ask for, and what the loss counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.sampling.pipeline import Pipeline
from mezzotint.training.config import ConfigError, from_mapping
from mezzotint.training.data import draw_captions
from mezzotint.training.export_run import export_run
from mezzotint.training.masking import draw_keep
from mezzotint.training.metrics_log import read_metrics
from mezzotint.training.objectives import draw_t
from mezzotint.training.task import StepKey
from mezzotint.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Settings = Callable[..., dict[str, Any]]

EVERYTHING = {
    "model": {
        "num_layers": 6, "segments": "1 + 1x[1,1,1,1] + 1", "mixer_layers": 2, "num_experts": 2,
        "expert_capacity": 1.0, "attention": "window", "attention_tile": 4, "attention_window": 4,
    },
    "density": {"densities": ["full", "0.5-0.7"]}, "masking": {"ratio": 0.5, "kind": "groups", "group_size": 2},
}


def test_all_together_trains_goes_on_exactly_and_draws_at_each_density(tmp_path: Path, tiny_settings: Settings) -> None:
    settings = tiny_settings(max_steps=6, optim={"decay_fraction": 0}, **EVERYTHING)
    Trainer(from_mapping(settings), tmp_path / "whole").run()
    Trainer(from_mapping(settings | {"max_steps": 3}), tmp_path / "parts").run()
    Trainer(from_mapping(settings), tmp_path / "parts").run()
    whole, parts = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-6)
    pipeline = Pipeline.from_pretrained(str(export_run(tmp_path / "parts", tmp_path / "model")))
    drawn = [
        pipeline("taxi", seed=1, num_inference_steps=2, density=density).images[0].tobytes()
        for density in (None, "full", "balanced", "fast")
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_the_loss_is_that_of_the_kept_patches(tmp_path: Path, tiny_settings: Settings) -> None:
    settings = tiny_settings(batch_size=4, masking={"ratio": 0.75}, model={"mixer_layers": 1})
    trainer = Trainer(from_mapping(settings), tmp_path)
    config, data, table = trainer.config, trainer.task.data, trainer.task.table  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    indices = trainer.sampler.indices(0)
    pictures = torch.stack([data.picture(i) for i in indices])
    key = StepKey(seed=0, step=0)
    with torch.no_grad():
        loss = trainer.task.loss(trainer.network, trainer.network, (indices, pictures), key)

    generator, p = key.own(), config.model.patch_size
    numbers = draw_captions([data.captions[i] for i in indices], table, config.data, generator)
    t = draw_t(4, config.objective, generator)
    x = pictures.float() / 127.5 - 1
    noise = torch.randn(x.shape, generator=generator) * config.model.noise_scale
    grid = config.model.grid(*x.shape[2:])
    keep = draw_keep(config.masking, 4, grid, generator)
    assert keep is not None
    assert keep.shape == (4, grid[0] * grid[1] // 4)
    noisy = x + t.view(-1, 1, 1, 1) * (noise - x)
    with torch.no_grad():
        answer = trainer.network(noisy, t, *table.batch(numbers), keep=keep)
    errors = []
    for i in range(4):
        for token in keep[i].tolist():
            row, column = token // grid[1] * p, token % grid[1] * p
            patch = (answer - x)[i, :, row : row + p, column : column + p]
            errors.append(patch.square().mean() / t[i].clamp(min=0.05) ** 2)
    assert float(loss) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_bypassing_tokens_count_as_well(tmp_path: Path, tiny_settings: Settings) -> None:
    """Whatever the blocks between, a fresh network answers zero everywhere, and its loss is the same."""
    losses = []
    for masking in ({}, {"ratio": 0.5, "bypass_from": 0, "bypass_to": 1}):
        trainer = Trainer(from_mapping(tiny_settings(batch_size=4, masking=masking)), tmp_path / str(len(losses)))
        indices = trainer.sampler.indices(0)
        pictures = torch.stack([trainer.task.data.picture(i) for i in indices])
        loss = trainer.task.loss(trainer.network, trainer.network, (indices, pictures), StepKey(seed=0, step=0))
        losses.append(loss.detach())
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"masking": {"ratio": 1.0}}, "masking.ratio is 1.0; it must be at least 0 and under 1"),
        ({"masking": {"ratio": 0.5, "bypass_to": 99}}, "masking.bypass_to is 99; it must be at most model.num_layers"),
        (EVERYTHING | {"masking": {"ratio": 0.5, "bypass_to": 2}}, "masking.bypass_to is 2; .* and 0 where the model"),
    ],
)
def test_masking_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str, tiny_settings: Settings) -> None:
    with pytest.raises(ConfigError, match=sentence):
        from_mapping(tiny_settings(**changes))
