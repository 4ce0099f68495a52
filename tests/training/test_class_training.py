"""A tiny class-conditional run over latents in this process: what it learns, draws, takes up and leaves behind."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.density import DensitySchedule
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.class_pipeline import ClassPipeline
from mezzotint.training.checkpoint import list_checkpoints, load_checkpoint
from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.config import ConfigError, TrainConfig, from_mapping
from mezzotint.training.ddpm_objective import DDPMObjective
from mezzotint.training.density_stairs import EvenTimes, draw_stair
from mezzotint.training.encode_latents import encode_latents
from mezzotint.training.export_run import export_run
from mezzotint.training.latent_data import draw_latents
from mezzotint.training.metrics_log import read_metrics
from mezzotint.training.task import StepKey
from mezzotint.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Settings = Callable[..., dict[str, Any]]
LAYOUT = "1 + 1x[1,1,1,0] + 1"
DENSITY = "0.3-0.75"


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, class_model: Path) -> Path:
    """Six latents of two classes."""
    pictures, out = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("latents") / "six"
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (pictures / name).mkdir()
        for i in range(3):
            values = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(pictures / name / f"{i}.png")
    encode_latents(pictures, class_model, out, size=16)
    return out


@pytest.fixture(scope="module")
def settings(latents: Path) -> Settings:
    """settings(max_steps=3, optim={...}) changes some of a tiny run's; published where that is fast enough."""

    def made(**changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "family": "class", "name": "tiny", "dtype": "fp32", "batch_size": 4, "max_steps": 5,
            "checkpoint_minutes": 60,
            "model": {
                "sample_size": 8, "hidden_size": 24, "num_layers": 5, "num_heads": 2, "segments": LAYOUT,
                "frequency_shift": 1, "mlp_norm_eps": 1e-5,
            },
            "data": {"path": str(latents)},
            "density": {"densities": [DENSITY]},
            "optim": {
                "muon": False, "adamw_lr": 1e-4, "weight_decay": 0.0, "betas": [0.9, 0.999], "warmup_steps": 0,
                "decay_fraction": 0.0, "grad_clip": 1e9, "ema_decay": 0.9999,
            },
            "samples": {"every_steps": 0, "num_inference_steps": 2, "class_labels": [1, 0]},
        }
        for key, value in changes.items():
            given[key] = given.get(key, {}) | value if isinstance(value, dict) else value
        return given

    return made


def train(given: dict[str, Any], output: Path, **options: Any) -> list[dict[str, Any]]:
    Trainer(from_mapping(given), output, **options).run()
    return read_metrics(output / "metrics.jsonl")


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in metrics]


def test_a_family_of_settings_is_told_by_its_name(settings: Settings) -> None:
    assert isinstance(from_mapping(settings()), ClassTrainConfig)
    assert isinstance(from_mapping({}), TrainConfig)
    with pytest.raises(ConfigError, match="family is 'video'; it must be one of text, class"):
        from_mapping({"family": "video"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"label_dropout": 1}}, "data.label_dropout is 1.0; it must be in [0, 1)."),
        ({"data": {"balance": 1}}, "data.balance is not a setting; the settings there are path, label_dropout"),
        ({"model": {"null_class": False}}, "data.label_dropout is 0.1; it must be 0 where model.null_class is false."),
        ({"model": {"segments": None}}, "model.segments is None; it must be a layout"),
        ({"model": {"num_classes": 0}}, "model.num_classes is 0; it must be more than 0."),
        ({"density": {"densities": ["half"]}}, "density.densities is ('half',); it must be a list of full"),
        ({"density": {"time_shift": 2}}, "density.time_shift is 2.0; it must be 1"),
        ({"objective": {"beta_start": 0.5}}, "objective.beta_start is 0.5; it must be over 0 and at most"),
        ({"objective": {"num_timesteps": 1}}, "objective.num_timesteps is 1; it must be more than 1."),
        ({"samples": {"class_labels": [1000]}}, "samples.class_labels is (1000,); it must be classes from 0 to 999"),
        ({"samples": {"class_labels": [0.5]}}, "samples.class_labels is [0.5]; it must be a list of whole numbers."),
        ({"optim": {"muon": 1}}, "optim.muon is 1; it must be true or false."),
    ],
)
def test_a_setting_out_of_range_is_named(settings: Settings, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_mapping(settings(**changes))
    assert str(raised.value).startswith(sentence)


def test_training_lowers_the_loss_of_its_latents(settings: Settings, tmp_path: Path) -> None:
    metrics = train(settings(max_steps=120, batch_size=12, optim={"adamw_lr": 3e-3}), tmp_path)
    early, late = mean(losses(metrics[:3])), mean(losses(metrics[-40:]))
    assert early > 0.9  # a fresh network answers zero, and noise has unit variance
    assert late < 0.6 * early


def test_a_step_is_one_step_of_adamw_on_the_loss_written_out(settings: Settings, tmp_path: Path, latents: Path) -> None:
    """On a network that is nowhere zero, from the recipe's own random numbers, by torch's AdamW."""
    given = settings(batch_size=6, data={"label_dropout": 0.5})
    trainer = Trainer(from_mapping(given), tmp_path)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainer.optimizer.masters.items():
            if trainer.optimizer.live[name].requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    trainer.optimizer.write_back()
    trainer.step = step = 4
    config, key = trainer.config, StepKey(seed=0, step=4)
    plain = trainer.task.empty_network()
    plain.load_state_dict(trainer.network.state_dict())
    indices = trainer.sampler.indices(step)
    batch = (indices, torch.stack([trainer.task.data.picture(i) for i in indices]))

    generator = key.own()
    x = draw_latents(batch[1], trainer.task.data.index, generator)
    labels = torch.tensor([0 if i < 3 else 1 for i in indices])
    labels[torch.rand(6, generator=generator) < 0.5] = 1000
    assert 0 < int((labels == 1000).sum()) < 6
    stair = draw_stair(config.density, EvenTimes(), (4, 4), key)
    objective = DDPMObjective()
    t = objective.draw_t(6, generator, (stair.quantile_from, stair.quantile_to))
    noise = torch.randn(x.shape, generator=generator)
    xt = objective.add_noise(x, t, noise)
    expected = objective.loss(plain(xt, t, labels, grid=stair.grid), x, xt, t, noise).mean()
    expected.backward()
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
    adamw.step()

    loss, _, factor = trainer.train_step(batch)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert factor == 1
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(trainer.optimizer.masters[name].detach(), parameter.detach(), atol=2e-7, rtol=1e-5)


def test_the_rate_is_constant_from_the_first_step(settings: Settings, tmp_path: Path) -> None:
    assert {line["rate_factor"] for line in train(settings(max_steps=4), tmp_path)} == {1.0}


def test_each_step_takes_one_grid_as_often_as_its_stair_is_long(settings: Settings, tmp_path: Path) -> None:
    trainer = Trainer(from_mapping(settings(density={"densities": ["0.1-0.9"]})), tmp_path)
    schedule, asked = DensitySchedule(r_min=0.1, r_max=0.9), []

    def wrapped(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, *, grid: Any) -> torch.Tensor:
        asked.append(grid)
        assert {schedule.grid((int(step) + 0.5) / 1000, (4, 4)) for step in t} == {grid}
        assert {schedule.stair((int(step) + 0.5) / 1000) for step in t} == {schedule.stair((int(t[0]) + 0.5) / 1000)}
        return torch.zeros(len(x), 8, 8, 8)

    items = torch.stack([trainer.task.data.picture(i) for i in range(6)])
    steps = 800
    for step in range(steps):
        trainer.task.loss(wrapped, trainer.network, ([*range(6)], items), StepKey(seed=0, step=step))
    counts = Counter(asked)
    assert set(counts) == {(4, 4), (3, 3), (2, 2), (1, 1)}
    for count in counts.values():
        assert count / steps == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / steps))


def test_four_processes_take_an_interval_each(settings: Settings) -> None:
    config = from_mapping(settings()).density
    for step in range(200):
        keys = [StepKey(seed=1, step=step, rank=rank, num_ranks=4) for rank in range(4)]
        draws = [draw_stair(config, EvenTimes(), (4, 4), key) for key in keys]
        intervals = sorted((draw.quantile_from, draw.quantile_to) for draw in draws)
        assert intervals == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]


def test_a_run_goes_on_as_if_it_had_not_stopped(settings: Settings, tmp_path: Path) -> None:
    straight = train(settings(max_steps=6), tmp_path / "straight")
    train(settings(max_steps=3), tmp_path / "broken")
    broken = train(settings(max_steps=6), tmp_path / "broken")
    assert losses(broken) == losses(straight)
    ends = [load_checkpoint(list_checkpoints(tmp_path / run)[-1]) for run in ("straight", "broken")]
    for name, value in ends[0].masters.items():
        assert torch.equal(value, ends[1].masters[name])
        assert torch.equal(ends[0].ema[name], ends[1].ema[name])
    assert len(set(losses(straight))) == 6


def test_workers_and_samples_change_no_loss(settings: Settings, tmp_path: Path) -> None:
    plain = train(settings(max_steps=4), tmp_path / "plain")
    samples = {"every_steps": 2, "num_inference_steps": 2, "class_labels": [1, 0]}
    other = train(settings(max_steps=4, data={"num_workers": 1}, samples=samples), tmp_path / "other")
    assert losses(other) == losses(plain)
    grids = sorted((tmp_path / "other" / "samples").iterdir())
    assert [p.name for p in grids] == ["step-00000002.png", "step-00000004.png"]


def test_bf16_trains_on_fp32_masters(settings: Settings, tmp_path: Path) -> None:
    trainer = Trainer(from_mapping(settings(max_steps=2, dtype="bf16", gradient_checkpointing=True)), tmp_path)
    trainer.run()
    assert {p.dtype for p in trainer.network.parameters()} == {torch.bfloat16}
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert {p.dtype for p in (*saved.masters.values(), *saved.ema.values())} == {torch.float32}


@pytest.fixture(scope="module")
def exported(settings: Settings, tmp_path_factory: pytest.TempPathFactory, cut_class_model: Path) -> Path:
    """A model exported from two steps on what `mezzotint convert` made; the data have gone since."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(settings()["data"]["path"], folder / "data")
    given = settings(max_steps=2, data={"path": str(folder / "data")}, model={"condition_per_block": True})
    train(given, folder / "run", init_from=str(cut_class_model))
    shutil.rmtree(folder / "data")
    return export_run(folder / "run", folder / "model", guidance_scale=1.5)


def test_a_run_starts_from_a_converted_model_and_its_export_can_be_drawn_from(
    exported: Path, cut_class_model: Path
) -> None:
    card = find_model(str(exported))
    assert card.classes is not None
    assert (card.sample_size, card.guidance_scale, card.num_inference_steps) == (16, 1.5, 2)
    assert card.classes.names[207] == "golden retriever"
    pipeline = ClassPipeline.from_pretrained(str(exported), dtype=torch.float32)
    assert pipeline.transformer.config.segments == LAYOUT
    drawn = pipeline("golden retriever", seed=1, density="fast")
    assert drawn.images[0].size == (16, 16)
    # Two steps at 1e-4 move a weight by less than that, and bf16 rounds it.
    before = load_file(cut_class_model / "transformer" / "diffusion_pytorch_model.safetensors")
    after = pipeline.transformer.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=4e-4, rtol=2**-8)
    assert (after["blocks.1.attn.q.weight"] - before["blocks.1.attn.q.weight"].bfloat16().float()).abs().max() > 0
    text = (exported / "README.md").read_text()
    assert "class-conditional diffusion transformer" in text
    assert "| latents | 8 x 8 values, patches of 2 |" in text
    assert (exported / "loss.png").is_file()


def test_an_export_is_drawn_by_the_command_line_and_trained_on(
    exported: Path, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    arguments = ["generate", "--class-label", "3", "--model", str(exported), "-o", str(file), "--seed", "1", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--steps", "2", "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    given = settings(model={"condition_per_block": True})
    trainer = Trainer(from_mapping(given), tmp_path / "next", init_from=str(exported))
    held = load_file(exported / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, master in trainer.optimizer.masters.items():
        assert torch.equal(master, held[name].float())


def test_a_dense_model_is_cut_into_the_recipes_segments(class_model: Path, settings: Settings, tmp_path: Path) -> None:
    given = settings(model={"condition_per_block": True})
    trainer = Trainer(from_mapping(given), tmp_path, init_from=str(class_model))
    assert isinstance(trainer.network, ClassDiT)
    assert trainer.network.shape.segments == LAYOUT
    dense = load_file(class_model / "transformer" / "diffusion_pytorch_model.safetensors")
    key = dense["transformer_blocks.1.attn1.to_q.weight"]
    assert torch.equal(trainer.optimizer.masters["blocks.1.attn.q.weight"], key)
    assert json.loads((tmp_path / "classes.json").read_text())["207"] == "golden retriever"


def test_without_a_model_the_classes_are_those_of_the_data(settings: Settings, tmp_path: Path) -> None:
    given = settings(max_steps=1, model={"num_classes": 2})
    train(given, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "model")
    card = find_model(str(tmp_path / "model"))
    assert card.classes is not None
    assert card.classes.names == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("changes", "init", "words"),
    [
        ({"model": {"sample_size": 16}}, None, "model.sample_size is 16; it must be 8, as the latents in"),
        ({"model": {"in_channels": 3}}, None, "model.in_channels is 3; it must be 4"),
        ({"model": {"num_classes": 1}, "samples": {"class_labels": [0]}}, None,
         "model.num_classes is 1; it must be at least 2"),
        ({"data": {"path": "nowhere"}}, None, "data.path is nowhere; it must be a folder of latents"),
        ({}, "nowhere", "--init-from is nowhere; "),
        ({"model": {"frequency_shift": 0}}, "cut",
         "True and not False; frequency_shift is 1 and not 0; give it the recipe's"),
        ({"model": {"segments": None}, "density": {"densities": []}}, "cut", f"segments is {LAYOUT} and not None"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: Settings, tmp_path: Path, cut_class_model: Path, changes: dict[str, Any], init: str | None, words: str
) -> None:
    start = str(cut_class_model) if init == "cut" else init
    with pytest.raises(ConfigError) as raised:
        Trainer(from_mapping(settings(**changes)), tmp_path, init_from=start)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_latents_without_their_autoencoder_are_refused(settings: Settings, latents: Path, tmp_path: Path) -> None:
    shutil.copytree(latents, tmp_path / "bare", ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(ConfigError, match="it has no vae/ with the autoencoder of its latents"):
        Trainer(from_mapping(settings(data={"path": str(tmp_path / "bare")})), tmp_path / "run")


def test_a_shift_of_the_times_is_refused_at_export(settings: Settings, tmp_path: Path) -> None:
    train(settings(max_steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="--time-shift is 3; it must be 1"):
        export_run(tmp_path / "run", tmp_path / "model", time_shift=3)
    assert not (tmp_path / "model").exists()
