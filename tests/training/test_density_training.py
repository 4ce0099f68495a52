"""Fine-tuning a network in segments: cut from a dense model, taught by it, one grid a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.dit.model import DiT
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import SegmentLayout
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.training.config import ConfigError, from_mapping
from mezzotint.training.data import draw_captions
from mezzotint.training.density_stairs import draw_stair
from mezzotint.training.export_run import export_run
from mezzotint.training.metrics_log import read_metrics
from mezzotint.training.objectives import draw_t
from mezzotint.training.task import StepKey
from mezzotint.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Settings = Callable[..., dict[str, Any]]

LAYOUT = "1 + 1x[1,1,1,0] + 1"
DENSITY = {"densities": ["full", "0.5-0.7"], "time_shift": 2.0}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Settings) -> Path:
    """An exported dense model of five blocks, trained for a moment."""
    folder = tmp_path_factory.mktemp("dense")
    Trainer(from_mapping(tiny_settings(max_steps=30, model={"num_layers": 5})), folder / "run").run()
    return export_run(folder / "run", folder / "model")


def cut_settings(tiny_settings: Settings, **changes: Any) -> dict[str, Any]:
    return tiny_settings(**{"model": {"num_layers": 5, "segments": LAYOUT}, "density": DENSITY} | changes)


def test_a_dense_model_is_cut_at_the_start(dense: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    trainer = Trainer(from_mapping(cut_settings(tiny_settings)), tmp_path, init_from=str(dense))
    source = DiT.from_pretrained(dense / "transformer", dtype=torch.float32)
    wanted = recut(source, SegmentLayout.parse(LAYOUT)).state_dict()
    assert set(wanted) == set(trainer.optimizer.masters)
    assert all(torch.equal(p, wanted[name]) for name, p in trainer.optimizer.masters.items())


def test_each_step_takes_one_grid_of_the_schedule(dense: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    trainer = Trainer(from_mapping(cut_settings(tiny_settings, max_steps=40)), tmp_path, init_from=str(dense))
    grids: list[Any] = []
    trainer.network.register_forward_pre_hook(
        lambda module, args, kwargs: grids.append(kwargs["grid"]), with_kwargs=True
    )
    trainer.run()
    config = trainer.config
    wanted = [
        draw_stair(config.density, config.objective, (4, 4), StepKey(seed=0, step=i)).grid for i in range(40)
    ]
    assert grids == wanted
    assert set(grids) == {(4, 4), (3, 3), (2, 2)}


def test_a_cut_network_learns_its_teachers_answers(dense: Path, tmp_path: Path, tiny_settings: Settings) -> None:
    settings = cut_settings(
        tiny_settings, max_steps=150, batch_size=16, distill={"teacher": str(dense)},
        optim={"muon_lr": 0.01, "adamw_lr": 0.005},
    )
    Trainer(from_mapping(settings), tmp_path, init_from=str(dense)).run()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])


def test_the_loss_is_the_distance_from_the_teachers_velocity(
    dense: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    """A quarter of the data's picture and three quarters of the teacher's, put together by hand."""
    settings = cut_settings(tiny_settings, batch_size=8, distill={"teacher": str(dense), "weight": 0.75})
    trainer = Trainer(from_mapping(settings), tmp_path, init_from=str(dense))
    config, data, table = trainer.config, trainer.task.data, trainer.task.table  # type: ignore[attr-defined]
    indices = trainer.sampler.indices(0)
    pictures = torch.stack([data.picture(i) for i in indices])
    key = StepKey(seed=0, step=0)
    with torch.no_grad():
        loss = trainer.task.loss(trainer.network, trainer.network, (indices, pictures), key)

    generator, stair = key.own(), draw_stair(config.density, config.objective, (4, 4), key)
    numbers = draw_captions([data.captions[i] for i in indices], table, config.data, generator)
    t = draw_t(8, config.objective, generator, (stair.quantile_from, stair.quantile_to))
    x = pictures.float() / 127.5 - 1
    noise = torch.randn(x.shape, generator=generator) * config.model.noise_scale
    noisy = x + t.view(-1, 1, 1, 1) * (noise - x)
    teacher = DiT.from_pretrained(dense / "transformer", dtype=torch.float32).eval()
    student = recut(teacher, SegmentLayout.parse(LAYOUT))
    with torch.no_grad():
        taught = 0.25 * x + 0.75 * teacher(noisy, t, *table.batch(numbers))
        answer = student(noisy, t, *table.batch(numbers), grid=stair.grid)
    wanted = ((answer - taught).square().mean(dim=(1, 2, 3)) / t.clamp(min=0.05).square()).mean()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)


def test_a_run_in_segments_goes_on_exactly_and_its_model_draws_at_each_density(
    dense: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    settings = cut_settings(tiny_settings, max_steps=8, distill={"teacher": str(dense)}, optim={"decay_fraction": 0})
    Trainer(from_mapping(settings), tmp_path / "whole", init_from=str(dense)).run()
    Trainer(from_mapping(settings | {"max_steps": 4}), tmp_path / "parts", init_from=str(dense)).run()
    Trainer(from_mapping(settings), tmp_path / "parts", init_from=str(dense)).run()
    whole, parts = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-6)
    pipeline = Pipeline.from_pretrained(str(export_run(tmp_path / "parts", tmp_path / "model")))
    drawn = [
        pipeline("taxi", seed=1, num_inference_steps=3, density=density).images[0].tobytes()
        for density in (None, "full", "fast")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(("model", "sentence"), [
    ({"num_layers": 5, "segments": LAYOUT, "patch_size": 16}, "it must take and give what the network does"),
    ({"num_layers": 5, "segments": LAYOUT, "noise_scale": 3.0}, "it must take and give what the network does"),
])
def test_a_teacher_that_speaks_of_other_things_is_refused(
    dense: Path, tmp_path: Path, tiny_settings: Settings, model: dict[str, Any], sentence: str
) -> None:
    settings = cut_settings(tiny_settings, model=model, distill={"teacher": str(dense)})
    with pytest.raises(ConfigError, match=sentence):
        Trainer(from_mapping(settings), tmp_path)


def test_hints_are_the_distance_of_the_tokens_behind_a_module(
    dense: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    """The blocks are run by hooks of the test's own, and the distance is written out."""
    given = {"teacher": str(dense), "weight": 1.0}
    plain, hinted = (
        Trainer(from_mapping(cut_settings(tiny_settings, batch_size=8, distill=given | more)), tmp_path / name,
                init_from=str(dense))
        for name, more in (("plain", {}), ("hinted", {"hint_weight": 0.5}))
    )
    indices = plain.sampler.indices(0)
    pictures = torch.stack([plain.task.data.picture(i) for i in indices])
    key, seen = StepKey(seed=0, step=0), []
    for network in (plain.network, plain.task.teacher.network):  # type: ignore[attr-defined]
        network.blocks[3].register_forward_hook(lambda *call: seen.append(call[-1].double()))
    with torch.no_grad():
        losses = [
            float(trainer.task.loss(trainer.network, trainer.network, (indices, pictures), key))
            for trainer in (plain, hinted)
        ]
    ours, theirs = seen
    wanted = 0.5 * float((ours - theirs).square().sum() / theirs.square().sum())
    assert wanted > 0
    assert losses[1] - losses[0] == pytest.approx(wanted, rel=1e-4)
    assert not hinted.network.blocks[3]._forward_hooks


def test_hints_ask_for_a_teacher_of_the_same_depth_and_width(
    dense: Path, tmp_path: Path, tiny_settings: Settings
) -> None:
    settings = cut_settings(
        tiny_settings, model={"num_layers": 6, "segments": "1 + 1x[1,2,1,0] + 1"},
        distill={"teacher": str(dense), "hint_weight": 0.5},
    )
    with pytest.raises(ConfigError, match="has 5 blocks of width 32 and the network 6 of 32"):
        Trainer(from_mapping(settings), tmp_path)
