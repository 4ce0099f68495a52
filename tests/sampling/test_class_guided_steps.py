"""Density guidance and step caches of a class-conditional drawing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mezzotint.dit.latent_flops import latent_flops
from mezzotint.sampling.class_pipeline import ClassPipeline
from mezzotint.sampling.intake import accept
from mezzotint.sampling.pipeline import PipelineOutput

STEPS = 5


@pytest.fixture
def pipeline(cut_class_model: Path) -> ClassPipeline:
    return ClassPipeline.from_pretrained(str(cut_class_model), dtype=torch.float32)


def draw(pipeline: ClassPipeline, **settings: Any) -> PipelineOutput:
    return pipeline(3, **{"seed": 1, "num_inference_steps": STEPS} | settings)


def pixels(out: PipelineOutput, index: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(out.images[index]).astype(int)


def test_no_class_runs_on_the_grids_of_guidance(pipeline: ClassPipeline) -> None:
    asked, forward = [], pipeline.transformer.forward

    def keep(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, *, grid: Any, **more: Any) -> torch.Tensor:
        asked.append((labels.tolist(), grid))
        return forward(x, t, labels, grid=grid, **more)

    pipeline.transformer.forward = keep
    draw(pipeline, density="0.3-0.3", guidance_density="0.7-0.7")
    assert asked == [([3], (3, 3)), ([1000], (2, 2))] * STEPS
    asked.clear()
    draw(pipeline, density="0.3-0.3", guidance_density="0.3-0.3")
    assert asked == [([3, 1000], (3, 3))] * STEPS


@pytest.mark.parametrize("settings", [
    {"guidance_density": "fast"}, {"guidance_density": "skip"}, {"cache": "taylor:2"},
    {"density": "fast", "guidance_density": "full", "cache": "taylor:3"},
])
def test_each_setting_changes_the_picture_and_costs_what_the_plan_says(
    pipeline: ClassPipeline, cut_class_model: Path, settings: dict[str, str]
) -> None:
    plain, other = draw(pipeline, num_images=2), draw(pipeline, num_images=2, **settings)
    assert not np.array_equal(pixels(plain), pixels(other))
    asked = {"class_label": 3, "model": str(cut_class_model), "num_inference_steps": STEPS, "num_images": 2}
    assert other.flops == accept(asked | settings)[1].flops < plain.flops == accept(asked)[1].flops
    left_out = "cache" in settings or settings.get("guidance_density") == "skip"
    assert plain.module_passes == 2 * 2 * STEPS
    assert other.module_passes is not None
    assert (other.module_passes < 2 * 2 * STEPS) == left_out
    assert np.array_equal(pixels(other, 1), pixels(draw(pipeline, seed=2, **settings)))


def test_first_block_costs_what_ran(pipeline: ClassPipeline) -> None:
    every, some = (draw(pipeline, cache=f"first-block:{threshold}") for threshold in (0, 1))
    assert np.array_equal(pixels(every), pixels(draw(pipeline)))
    assert some.module_passes is not None
    assert 2 <= some.module_passes < 2 * STEPS == every.module_passes
    shape = pipeline.transformer.shape
    of_modules = latent_flops(shape, (4, 4)) - latent_flops(shape, (4, 4), modules=False)
    assert every.flops - some.flops == (2 * STEPS - some.module_passes) * of_modules
