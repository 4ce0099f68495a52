"""Fixed values come back as they were given, and the rest is drawn to fit them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mezzotint.dit.model import DiT
from mezzotint.sampling.conditioning import Fixed, paste_fixed
from mezzotint.sampling.edm import edm_scheduler
from mezzotint.sampling.panel_pictures import compose, drawn_mask, split, to_values
from mezzotint.sampling.panels import Canvas, canvas_of, panel_layout
from mezzotint.sampling.pipeline import Pipeline


def noise_picture(side: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def canvas() -> Canvas:
    return canvas_of(panel_layout("1x2"), 64, 32, 8)


@pytest.fixture(scope="module")
def fixed(canvas: Canvas) -> Fixed:
    """The left panel is given."""
    return Fixed(clean=to_values(compose(canvas, {0: noise_picture(32, 1)})), drawn=drawn_mask(canvas, {0}))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    network = DiT(sample_size=32, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=2, num_heads=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Pipeline(network, FlowMatchEulerDiscreteScheduler(shift=2.0), guidance_scale=2.0, num_inference_steps=4)


def test_the_given_panel_comes_back_pixel_by_pixel(pipeline: Pipeline, canvas: Canvas, fixed: Fixed) -> None:
    previews: list[Tensor] = []
    out = pipeline("a red apple", width=64, height=32, seed=3, num_images=2, fixed=fixed,
                   callback=lambda step, of, clean: previews.append(clean))
    free = pipeline("a red apple", width=64, height=32, seed=3).images[0]
    for picture in out.images:
        assert split(canvas, picture)[0].tobytes() == noise_picture(32, 1).tobytes()
    drawn = [split(canvas, picture)[1].tobytes() for picture in (*out.images, free)]
    assert len(set(drawn)) == 3  # each seed its own, and neither without what lies beside it
    assert all(torch.equal(clean[:, :, :, :32], fixed.clean[:, :, :32].expand(2, -1, -1, -1)) for clean in previews)


def test_nothing_fixed_is_a_drawing_like_any_other(pipeline: Pipeline, canvas: Canvas, fixed: Fixed) -> None:
    nothing = Fixed(clean=fixed.clean, drawn=drawn_mask(canvas, set()))
    both = [pipeline("a cat", width=64, height=32, seed=1, fixed=each).images[0].tobytes() for each in (None, nothing)]
    assert both[0] == both[1]


def test_fixed_values_of_another_size_are_refused(pipeline: Pipeline, fixed: Fixed) -> None:
    with pytest.raises(ValueError, match=r"fixed is 32 rows by 64 columns; .* 64 by 64"):
        pipeline("a cat", width=64, height=64, fixed=fixed)


def test_the_network_sees_the_given_values_with_the_noise_of_each_step(fixed: Fixed) -> None:
    """Euler steps of a network that answers nonsense: at every t what is fixed is (1 - t) clean + t noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    noise = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 4
    x = noise
    for timestep, following in zip(scheduler.timesteps, scheduler.sigmas[1:].tolist(), strict=True):
        x = scheduler.step(torch.full_like(x, 7.0), timestep, x, return_dict=False)[0]
        x = fixed.hold_flow(x, noise, following)
        wanted = (1 - following) * fixed.clean.double() + following * noise.double()
        torch.testing.assert_close(x[..., :32].double(), wanted[..., :32], atol=1e-6, rtol=1e-6)
    assert torch.equal(x[0, :, :, :32], fixed.clean[:, :, :32])


def _flow(fixed: Fixed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[6:7]
    held = fixed.hold_flow(x, noise, float(scheduler.sigmas[6]))
    return held, scheduler.scale_noise(fixed.clean[None], timestep, noise)


def _ddpm(fixed: Fixed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    scheduler = DDIMScheduler()
    held = fixed.hold_ddpm(x, noise, float(scheduler.alphas_cumprod[400]))
    return held, scheduler.add_noise(fixed.clean[None], noise, torch.tensor([400]))


def _edm(fixed: Fixed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    scheduler = edm_scheduler()
    scheduler.set_timesteps(10)
    held = fixed.hold_edm(x, noise, float(scheduler.sigmas[6]))
    return held, scheduler.add_noise(fixed.clean[None], noise, scheduler.timesteps[6:7])


SAMPLERS: dict[str, Callable[[Fixed, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "flow": _flow, "ddpm": _ddpm, "edm": _edm,
}
"""Each gives what is held at a middle step, and what diffusers' scheduler makes of the same values and noise."""


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_noised_as_each_scheduler_of_diffusers_does(kind: str, fixed: Fixed) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 3, 32, 64, generator=generator) for _ in range(2))
    held, noised = SAMPLERS[kind](fixed, x, noise)
    torch.testing.assert_close(held[..., :32], noised[..., :32])
    assert torch.equal(held[..., 32:], x[..., 32:])


@given(value=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30]))
def test_whatever_the_network_says_under_the_fixed_values_is_gone(value: float) -> None:
    canvas = Canvas(layout=panel_layout("2x1"), panel_width=2, panel_height=2)
    given_ = Fixed(clean=torch.zeros(3, 4, 2), drawn=drawn_mask(canvas, {1}))
    x = torch.full((1, 3, 4, 2), value)
    held = given_.hold_flow(x, torch.ones(1, 3, 4, 2), 0.25)
    assert (held[:, :, 2:] == 0.25).all()


def test_masks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        Fixed(clean=torch.zeros(3, 2, 2), drawn=torch.full((1, 2, 2), 0.5))
    with pytest.raises(ValueError, match=r"drawn is \[1, 2, 3\]"):
        Fixed(clean=torch.zeros(3, 2, 2), drawn=torch.ones(1, 2, 3))


def test_pixels_are_pasted_back_behind_an_autoencoder() -> None:
    drawn, given_ = noise_picture(8, 1), noise_picture(8, 2)
    mask = torch.ones(8, 8)
    mask[:, :4] = 0
    pasted = np.asarray(paste_fixed(drawn, given_, mask))
    assert (pasted[:, :4] == np.asarray(given_)[:, :4]).all()
    assert (pasted[:, 4:] == np.asarray(drawn)[:, 4:]).all()
    with pytest.raises(ValueError, match="must be of one size"):
        paste_fixed(drawn, given_, mask[:4])
