"""Density guidance and step caches in a drawing: against samplers written out by hand, and what is counted."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.block_order import RunModules, skip_modules
from mezzotint.dit.density import Grid
from mezzotint.dit.flops import forward_flops
from mezzotint.dit.model import DiT
from mezzotint.sampling import guided_steps
from mezzotint.sampling.cache import ModuleCache
from mezzotint.sampling.catalog import ModelCard
from mezzotint.sampling.density_presets import density_schedule
from mezzotint.sampling.pipeline import Pipeline, PipelineOutput
from mezzotint.sampling.plan import Plan, make_plan
from mezzotint.sampling.request import GenerateRequest, RequestError

STEPS = 8
MIXED = "first-block:0.68"
"""A threshold at which the pictures of these tests run their modules at some steps, and not all at the same."""
SETTINGS: dict[str, dict[str, str]] = {
    "density guidance": {"density": "balanced", "guidance_density": "fast"},
    "path-drop": {"density": "balanced", "guidance_density": "skip"},
    "first-block": {"density": "fast", "cache": MIXED},
    "taylor": {"density": "fast", "cache": "taylor:3"},
    "first-block and density guidance": {"density": "full", "guidance_density": "fast", "cache": MIXED},
    "taylor and density guidance": {"density": "full", "guidance_density": "0.3-0.9", "cache": "taylor:2"},
    "taylor and path-drop": {"guidance_density": "skip", "cache": "taylor:2"},
}


def draw(pipeline: Pipeline, prompt: Any = "a red apple", **settings: Any) -> PipelineOutput:
    return pipeline(prompt, **{"seed": 3, "num_inference_steps": STEPS} | settings)


def pixels(out: PipelineOutput, index: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(out.images[index]).astype(int)


def plan(card: ModelCard, pipeline: Pipeline, **settings: Any) -> Plan:
    asked = {"prompt": "x", "num_inference_steps": STEPS, "guidance_scale": 2.0} | settings
    return make_plan(GenerateRequest.model_validate(asked), replace(card, config=pipeline.transformer.shape))


Modules = Callable[[int], Callable[[Tensor, Tensor, RunModules], Tensor] | None]
"""For each step what stands in the place of the modules of one branch of one picture."""


def by_hand(
    pipeline: Pipeline, grids: tuple[list[Grid | None], list[Grid | None]], modules: tuple[Modules, Modules]
) -> np.ndarray[Any, Any]:
    """The picture of "a red apple" by Euler's method, each branch in a pass of its own."""
    network, text = pipeline.transformer, pipeline.text_encoder.encode(["a red apple", ""], 12)
    x = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(3))[None] * network.shape.noise_scale
    for step in range(STEPS):
        t = 1 - step / STEPS
        with torch.no_grad():
            wanted, unwanted = (
                network(
                    x, torch.full((1,), t), text.tokens[i : i + 1], text.pooled[i : i + 1], text.mask[i : i + 1],
                    grid=grids[i][step], module_pass=modules[i](step),
                )
                for i in range(2)
            )
        clean = unwanted + 2.0 * (wanted - unwanted)
        x = x - (x - clean) / t / STEPS
    return ((x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()


def grids_of(density: str) -> list[Grid | None]:
    return [*density_schedule(density).step_grids(STEPS, (8, 8))]


def all_modules(step: int) -> None:
    return None


def taylor_by_hand(interval: int) -> Modules:
    known: list[tuple[int, Tensor]] = []

    def at(step: int) -> Callable[[Tensor, Tensor, RunModules], Tensor]:
        def module_pass(before: Tensor, entering: Tensor, run: RunModules) -> Tensor:
            if step == 0 or (step - 1) % interval == 0:
                leaving = run(None)
                known.append((step, leaving - entering))
                return leaving
            (s0, r0), (s1, r1) = known[-2:]
            return entering + r1 + (r1 - r0) / (s1 - s0) * (step - s1)

        return module_pass

    return at


def first_block_by_hand(threshold: float, ran: list[int]) -> Modules:
    then: list[tuple[Tensor, Tensor]] = []

    def at(step: int) -> Callable[[Tensor, Tensor, RunModules], Tensor]:
        def module_pass(before: Tensor, entering: Tensor, run: RunModules) -> Tensor:
            now = entering - before
            if then and (now - then[-1][0]).abs().sum() / then[-1][0].abs().sum() < threshold:
                return entering + then[-1][1]
            ran.append(step)
            leaving = run(None)
            then.append((now, leaving - entering))
            return leaving

        return module_pass

    return at


def test_the_branch_of_guidance_runs_on_its_own_grid(cut_pipeline: Pipeline) -> None:
    drawn = pixels(draw(cut_pipeline, density="balanced", guidance_density="fast"))
    expected = by_hand(cut_pipeline, (grids_of("balanced"), grids_of("fast")), (all_modules, all_modules))
    assert np.abs(drawn - expected).max() <= 1
    for grids in ((grids_of("balanced"), grids_of("balanced")), (grids_of("fast"), grids_of("balanced"))):
        assert np.abs(drawn - by_hand(cut_pipeline, grids, (all_modules, all_modules))).max() > 3


def test_the_branch_of_guidance_can_leave_the_modules_out(cut_pipeline: Pipeline) -> None:
    drawn = pixels(draw(cut_pipeline, density="balanced", guidance_density="skip"))
    expected = by_hand(cut_pipeline, (grids_of("balanced"),) * 2, (all_modules, lambda step: skip_modules))
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.parametrize("guidance_density", ["same", "fast"])
def test_taylor_extrapolates_each_branch_by_itself(cut_pipeline: Pipeline, guidance_density: str) -> None:
    drawn = pixels(draw(cut_pipeline, density="balanced", guidance_density=guidance_density, cache="taylor:3"))
    grids = (grids_of("balanced"), grids_of("fast" if guidance_density == "fast" else "balanced"))
    expected = by_hand(cut_pipeline, grids, (taylor_by_hand(3), taylor_by_hand(3)))
    assert np.abs(drawn - expected).max() <= 1
    assert np.abs(drawn - pixels(draw(cut_pipeline, density="balanced", guidance_density=guidance_density))).max() > 3


@pytest.mark.parametrize("guidance_density", ["same", "fast"])
def test_first_block_decides_for_each_branch_by_itself(cut_pipeline: Pipeline, guidance_density: str) -> None:
    ran: tuple[list[int], list[int]] = ([], [])
    grids = (grids_of("balanced"), grids_of("fast" if guidance_density == "fast" else "balanced"))
    expected = by_hand(cut_pipeline, grids, (first_block_by_hand(0.68, ran[0]), first_block_by_hand(0.68, ran[1])))
    out = draw(cut_pipeline, density="balanced", guidance_density=guidance_density, cache=MIXED)
    assert np.abs(pixels(out) - expected).max() <= 1
    assert out.module_passes == len(ran[0]) + len(ran[1])
    assert all(1 < len(steps) < STEPS for steps in ran)
    assert ran[0] != ran[1]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_is_the_same_to_the_last_bit_whatever_is_drawn_with_it(
    cut_pipeline: Pipeline, name: str, dtype: torch.dtype
) -> None:
    network = DiT(**cut_pipeline.transformer.config)
    network.load_state_dict(cut_pipeline.transformer.state_dict())
    pipeline = Pipeline(network.eval().to(dtype), FlowMatchEulerDiscreteScheduler(), guidance_scale=2.0)
    asked = {"a cat": 4, "a much longer prompt about a dog": 9, "a taxi": 2}
    many = draw(pipeline, list(asked), seed=list(asked.values()), **SETTINGS[name])
    alone = [draw(pipeline, prompt, seed=seed, **SETTINGS[name]) for prompt, seed in asked.items()]
    assert [pixels(many, i).tolist() for i in range(3)] == [pixels(one).tolist() for one in alone]
    assert many.module_passes == sum(one.module_passes or 0 for one in alone)
    assert many.flops == sum(one.flops for one in alone)


@pytest.mark.parametrize("name", SETTINGS)
def test_in_one_batch_each_picture_decides_for_itself(cut_pipeline: Pipeline, name: str) -> None:
    asked = {"a cat": 4, "a much longer prompt about a dog": 9, "a taxi": 2}
    together = draw(cut_pipeline, list(asked), seed=list(asked.values()), batch_size=3, **SETTINGS[name])
    alone = [draw(cut_pipeline, prompt, seed=seed, **SETTINGS[name]) for prompt, seed in asked.items()]
    for i in range(3):
        assert np.abs(pixels(together, i) - pixels(alone[i])).max() <= 1
    passes = [one.module_passes for one in alone]
    assert together.module_passes == sum(each or 0 for each in passes)
    if "first-block" in name:
        assert len(set(passes)) > 1, "these pictures all run their modules as often, so nothing is shown"


@pytest.mark.parametrize("density", ["full", "balanced", "0.3-0.9"])
@pytest.mark.parametrize("settings", [
    {"guidance_density": "same"}, {"guidance_density": None}, {"cache": "off"}, {"cache": "first-block:0"},
    {"cache": "taylor:1"}, {"guidance_density": "as the density"},
])
def test_settings_that_leave_nothing_out_change_no_bit(
    cut_pipeline: Pipeline, density: str, settings: dict[str, str | None]
) -> None:
    settings = {key: density if value == "as the density" else value for key, value in settings.items()}
    plain, other = draw(cut_pipeline, density=density), draw(cut_pipeline, density=density, **settings)
    assert np.array_equal(pixels(plain), pixels(other))
    assert (plain.flops, plain.module_passes) == (other.flops, other.module_passes)
    assert plain.module_passes == 2 * STEPS


def test_without_guidance_its_density_says_nothing(cut_pipeline: Pipeline) -> None:
    plain, other = (draw(cut_pipeline, guidance_scale=1.0, guidance_density=density) for density in (None, "skip"))
    assert np.array_equal(pixels(plain), pixels(other))
    assert plain.module_passes == other.module_passes == STEPS


@contextmanager
def counted(network: DiT) -> Iterator[list[int]]:
    """The FLOPs that torch counts in the network's passes."""
    total, forward = [0], network.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = forward(*args, **kwargs)
        total[0] += counter.get_total_flops()
        return out

    network.forward = count
    try:
        yield total
    finally:
        del network.forward


@pytest.mark.parametrize("name", SETTINGS)
def test_what_was_computed_is_what_torch_counts(cut_pipeline: Pipeline, card: ModelCard, name: str) -> None:
    with counted(cut_pipeline.transformer) as total:
        out = draw(cut_pipeline, ["a cat", "a taxi"], **SETTINGS[name])
    assert out.flops == total[0]
    planned = plan(card, cut_pipeline, num_images=2, **SETTINGS[name]).flops
    assert out.flops < planned if "first-block" in name else out.flops == planned


def test_a_drawing_leaves_nothing_behind_for_the_next(cut_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that outlived its drawing would hand the residuals of one picture to another."""
    made: list[weakref.ref[ModuleCache]] = []
    make = guided_steps.make_cache

    def watched(*given: Any) -> ModuleCache | None:
        cache = make(*given)
        if cache is not None:
            made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(guided_steps, "make_cache", watched)
    first = [draw(cut_pipeline, prompt, density="fast", cache=MIXED) for prompt in ("a cat", "a taxi")]
    again = [draw(cut_pipeline, prompt, density="fast", cache=MIXED) for prompt in ("a taxi", "a cat")]
    assert [pixels(one).tolist() for one in first] == [pixels(one).tolist() for one in reversed(again)]
    gc.collect()
    assert [cache() for cache in made] == [None] * 4


def test_the_plan_prices_each_branch_on_its_grid(cut_pipeline: Pipeline, card: ModelCard) -> None:
    config = cut_pipeline.transformer.shape

    def price(grid: Grid | None, modules: bool = True) -> int:
        return forward_flops(config, (8, 8), sparse_grid=grid, modules=modules)

    both = zip(grids_of("balanced"), grids_of("fast"), strict=True)
    steps = plan(card, cut_pipeline, density="balanced", guidance_density="fast").steps
    assert [step.flops for step in steps] == [price(one) + price(other) for one, other in both]
    assert [[branch.sparse_grid for branch in step.branches] for step in steps] == [
        [one, other] for one, other in zip(grids_of("balanced"), grids_of("fast"), strict=True)
    ]
    skipping = plan(card, cut_pipeline, density="balanced", guidance_density="skip").steps
    assert [step.flops for step in skipping] == [price(grid) + price(None, False) for grid in grids_of("balanced")]
    assert all(step.branches[1].skips_modules and not step.branches[0].skips_modules for step in skipping)
    alone = plan(card, cut_pipeline, density="balanced", guidance_density="fast", guidance_scale=1).steps
    assert [step.flops for step in alone] == [price(grid) for grid in grids_of("balanced")]
    assert not any(step.guided for step in alone)


def test_the_plan_knows_the_steps_that_a_cache_leaves_out(cut_pipeline: Pipeline, card: ModelCard) -> None:
    off = plan(card, cut_pipeline, density="fast").steps
    taylor = plan(card, cut_pipeline, density="fast", cache="taylor:3").steps
    assert [step.cached for step in taylor] == [False, False, True, True, False, True, True, False]
    least = 2 * forward_flops(cut_pipeline.transformer.shape, (8, 8), modules=False)
    assert [step.flops for step in taylor] == [
        least if step.cached else full.flops for step, full in zip(taylor, off, strict=True)
    ]
    first_block = plan(card, cut_pipeline, density="fast", cache="first-block").steps
    assert [step.cached for step in first_block] == [False] + [None] * (STEPS - 1)
    assert [step.flops for step in first_block] == [step.flops for step in off]
    assert not any(step.cached for step in off)


@pytest.mark.parametrize(("settings", "field", "words"), [
    ({"guidance_density": "half"}, "guidance_density", "guidance_density is 'half'; it must be same, skip, full"),
    ({"guidance_density": "half", "guidance_scale": 1.0}, "guidance_density", "guidance_density is 'half'"),
    ({"cache": "on"}, "cache", "cache is 'on'; it must be off, first-block or taylor"),
    ({"density": "same"}, "density", "density is 'same'; it must be full"),
])
def test_the_pipeline_refuses_what_there_is_not(
    cut_pipeline: Pipeline, settings: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(RequestError) as refused:
        draw(cut_pipeline, **settings)
    assert refused.value.field == field
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(("field", "value", "instead"), [
    ("guidance_density", "fast", "give same"), ("guidance_density", "skip", "give same"),
    ("cache", "taylor", "give off"),
])
def test_a_network_without_segments_takes_neither(card: ModelCard, field: str, value: str, instead: str) -> None:
    with pytest.raises(RequestError, match=f"^{field} is {value}; .* has no segments .*{instead}") as refused:
        make_plan(GenerateRequest.model_validate({"prompt": "x", field: value}), card)
    assert refused.value.field == field


def test_first_block_needs_a_block_below_the_modules(cut_pipeline: Pipeline, card: ModelCard) -> None:
    config = replace(cut_pipeline.transformer.shape, segments="0 + 2x[1,1,1,0] + 2")
    bottomless = replace(card, config=config)
    sentence = r"^cache is first-block; .* no block below its modules .* give off or taylor"
    with pytest.raises(RequestError, match=sentence):
        make_plan(GenerateRequest(prompt="x", cache="first-block"), bottomless)
    make_plan(GenerateRequest(prompt="x", cache="taylor"), bottomless)
