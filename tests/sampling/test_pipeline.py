"""Prompt to pixels, against answers known in advance and a sampler written out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.request import RequestError


class Oracle(DiT):
    """Knows the picture: returns it (or its velocity), whatever it is given, and keeps what it was asked."""

    def __init__(self, prediction: str = "x", picture: torch.Tensor | None = None) -> None:
        super().__init__(
            sample_size=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=1, prediction=prediction
        )
        self.picture = torch.linspace(-0.9, 0.9, 3 * 32 * 32).view(3, 32, 32) if picture is None else picture
        self.asked: list[tuple[int, float]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, *text: torch.Tensor, grid: tuple[int, int] | None = None,
        module_pass: object = None,
    ) -> torch.Tensor:
        self.asked.append((len(x), float(t[0])))
        if self.shape.prediction == "x":
            return self.picture.expand_as(x)
        return (x - self.picture) / t.view(-1, 1, 1, 1)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def load(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(str(folder), dtype=torch.float32)


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("steps", [1, 7, 25])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_network_that_knows_the_picture_draws_it(prediction: str, steps: int, shift: float) -> None:
    oracle = Oracle(prediction)
    pipeline = Pipeline(oracle, FlowMatchEulerDiscreteScheduler(shift=shift))
    image = pipeline("x", seed=3, num_inference_steps=steps, guidance_scale=4.0).images[0]
    expected = ((oracle.picture + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(image) - expected).max() <= 1
    assert len(oracle.asked) == steps
    assert oracle.asked[0][1] == pytest.approx(1)


def test_the_steps_are_euler_steps_of_the_guided_velocity(tiny_model: Path) -> None:
    pipeline = load(tiny_model)
    drawn = pipeline("a red apple", negative_prompt="blue", seed=11, num_inference_steps=4, guidance_scale=2.5)
    network, encoder = pipeline.transformer, pipeline.text_encoder
    text = encoder.encode(["a red apple", "blue"], 12)
    x = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(11))[None] * network.shape.noise_scale
    for step in range(4):
        t = 1 - step / 4
        with torch.no_grad():
            wanted, unwanted = network(x.repeat(2, 1, 1, 1), torch.full((2,), t), text.tokens, text.pooled, text.mask)
        clean = unwanted + 2.5 * (wanted - unwanted)
        x = x - 0.25 * (x - clean) / t
    expected = ((x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(drawn.images[0]) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_depends_on_its_seed_and_not_on_what_is_drawn_with_it(
    tiny_model: Path, dtype: torch.dtype
) -> None:
    pipeline = Pipeline.from_pretrained(str(tiny_model), dtype=dtype)
    many = pipeline("a cat", seed=5, num_images=4, num_inference_steps=5)
    assert many.seeds == [5, 6, 7, 8]
    for i, seed in enumerate(many.seeds):
        alone = pipeline("a cat", seed=seed, num_inference_steps=5).images[0]
        assert np.array_equal(pixels(many.images[i]), pixels(alone))
    assert np.abs(pixels(many.images[0]) - pixels(many.images[1])).max() > 10


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_several_prompts_in_one_call_are_those_prompts_alone(tiny_model: Path, batch_size: int) -> None:
    pipeline = load(tiny_model)
    asked = {"a cat": 4, "a much longer prompt about a dog": 9, "a taxi": 2}
    together = pipeline(list(asked), seed=list(asked.values()), num_inference_steps=3, batch_size=batch_size)
    for image, (prompt, seed) in zip(together.images, asked.items(), strict=True):
        alone = pipeline(prompt, seed=seed, num_inference_steps=3).images[0]
        assert np.abs(pixels(image) - pixels(alone)).max() <= 1


def test_guidance_of_one_runs_the_network_once_a_step_on_the_prompt_alone() -> None:
    for scale, batch_size, rows in ((1.0, 1, 1), (1.0, 2, 2), (3.0, 1, 2), (3.0, 2, 4)):
        oracle = Oracle()
        pipeline = Pipeline(oracle, FlowMatchEulerDiscreteScheduler())
        pipeline("x", num_images=2, guidance_scale=scale, seed=0, batch_size=batch_size)
        assert {count for count, _ in oracle.asked} == {rows}


def test_the_prompt_and_the_negative_prompt_change_the_picture(tiny_model: Path) -> None:
    pipeline = load(tiny_model)
    images = [
        pipeline(prompt, negative_prompt=negative, seed=1, num_inference_steps=3).images[0]
        for prompt, negative in (("a cat", None), ("a taxi", None), ("a cat", "blue"))
    ]
    assert np.abs(pixels(images[0]) - pixels(images[1])).max() > 3
    assert np.abs(pixels(images[0]) - pixels(images[2])).max() > 3


@pytest.mark.parametrize(("width", "height"), [(64, 32), (8, 48)])
def test_other_sizes_come_out_as_asked(tiny_model: Path, width: int, height: int) -> None:
    image = load(tiny_model)("a cat", width=width, height=height, seed=1, num_inference_steps=2).images[0]
    assert image.size == (width, height)


def test_what_a_callback_raises_ends_the_drawing(tiny_model: Path) -> None:
    class EnoughError(Exception):
        pass

    seen = []

    def callback(step: int, num_steps: int, clean: torch.Tensor) -> None:
        seen.append((step, num_steps, tuple(clean.shape)))
        if step == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        load(tiny_model)("a cat", num_images=2, seed=1, num_inference_steps=5, callback=callback)
    assert seen == [(1, 5, (2, 3, 32, 32)), (2, 5, (2, 3, 32, 32))]


def test_a_prompt_that_is_cut_is_told(tiny_model: Path) -> None:
    pipeline = load(tiny_model)
    assert pipeline("a cat", seed=0, num_inference_steps=1).warnings == []
    (warning,) = pipeline("word " * 40, seed=0, num_inference_steps=1).warnings
    assert "42 tokens" in warning
    assert "12" in warning


def test_the_models_own_defaults_are_used(tiny_model: Path) -> None:
    pipeline = load(tiny_model)
    default = pipeline("a cat", seed=0).images[0]
    explicit = pipeline("a cat", seed=0, num_inference_steps=25, guidance_scale=2.0, width=32, height=32).images[0]
    assert np.array_equal(pixels(default), pixels(explicit))


def test_bad_arguments_are_named(tiny_model: Path) -> None:
    pipeline = load(tiny_model)
    with pytest.raises(RequestError, match="width is 33"):
        pipeline("a cat", width=33)
    with pytest.raises(RequestError, match="seed has 3 numbers for 2 pictures"):
        pipeline("a cat", num_images=2, seed=[1, 2, 3])


def test_a_saved_pipeline_draws_the_same(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = load(tiny_model)
    pipeline.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    first, second = (p("a cat", seed=2, num_inference_steps=3).images[0] for p in (pipeline, again))
    assert np.array_equal(pixels(first), pixels(second))
