"""Patches as principal components: against SVD, against pixels, and the deviations that they promise."""

from dataclasses import asdict, replace

import pytest
import torch

from mezzotint.dit.components import PatchComponents
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.layers import patchify
from mezzotint.dit.model import DiT

CONFIG = DiTConfig(
    sample_size=32, patch_size=8, patch_bottleneck=12, patch_space="components", hidden_size=32, num_layers=2,
    num_heads=2, text_size=24, max_text_tokens=5, noise_scale=2.0,
)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Smooth pictures, so that a few components hold most of them."""
    coarse = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear").clamp(-1, 1)


@pytest.fixture(scope="module")
def fitted(pictures: torch.Tensor) -> PatchComponents:
    components = PatchComponents(CONFIG)
    components.fit(pictures)
    return components


def test_the_components_are_those_of_an_svd(fitted: PatchComponents, pictures: torch.Tensor) -> None:
    patches = patchify(pictures, 8).flatten(0, 1).double()
    _, singular, right = torch.linalg.svd(patches, full_matrices=False)
    deviation = singular[:12] / len(patches) ** 0.5
    torch.testing.assert_close(fitted.deviation.double(), deviation, rtol=1e-4, atol=1e-5)
    projection = fitted.basis.double() @ fitted.basis.double().T  # signs and turns of the basis do not matter
    torch.testing.assert_close(projection, right[:12].T @ right[:12], atol=1e-3, rtol=0)


def test_only_the_smaller_components_are_lost(fitted: PatchComponents, pictures: torch.Tensor) -> None:
    once = fitted.synthesise(fitted.analyse(pictures))
    patches = patchify(pictures, 8).flatten(0, 1).double()
    left_out = torch.linalg.svdvals(patches)[12:].square().sum() / patches.numel()
    torch.testing.assert_close((once - pictures).square().mean().double(), left_out, rtol=1e-3, atol=0)
    torch.testing.assert_close(fitted.synthesise(fitted.analyse(once)), once, atol=1e-5, rtol=1e-5)


def test_each_map_lies_where_its_patch_does(fitted: PatchComponents) -> None:
    x = torch.zeros(1, 3, 16, 40)
    x[:, :, 8:, 16:24] = 1.0
    maps = fitted.analyse(x)
    assert maps.shape == (1, 12, 2, 5)
    assert maps[0].abs().amax(dim=0).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("t", [0.02, 0.3, 0.8, 1.0])
def test_both_ends_of_the_network_have_unit_deviation(
    fitted: PatchComponents, pictures: torch.Tensor, t: float
) -> None:
    maps = fitted.analyse(pictures)
    noise = 2.0 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    input_scale, kept, answer_scale = (part.view(12, 1, 1) for part in fitted.scales(torch.tensor([t]), 2.0))
    noisy = (1 - t) * maps + t * noise
    wanted = (maps - kept * noisy) / answer_scale
    for end in (noisy * input_scale, wanted):
        torch.testing.assert_close(end.square().mean(dim=(0, 2, 3)).sqrt(), torch.ones(12), atol=0.1, rtol=0)
    # The part that is kept is the best linear guess: its error says nothing about the noisy value.
    error = maps - kept * noisy
    covariance = (error * noisy).mean(dim=(0, 2, 3))
    sizes = error.square().mean(dim=(0, 2, 3)).sqrt() * noisy.square().mean(dim=(0, 2, 3)).sqrt()
    assert (covariance / sizes).abs().max() < 4 / 1600**0.5


def test_a_component_that_never_varies_divides_nothing_by_zero() -> None:
    components = PatchComponents(CONFIG)
    components.fit(torch.zeros(4, 3, 32, 32))
    assert all(part.isfinite().all() for part in components.scales(torch.tensor([0.0, 0.5, 1.0]), 2.0))


def test_pixels_and_maps_are_two_ways_into_one_network(fitted: PatchComponents, pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = DiT(**asdict(CONFIG))
    assert network.components is not None
    network.components.load_state_dict(fitted.state_dict())
    torch.nn.init.normal_(network.final.linear.weight)
    rest = (torch.tensor([0.2, 0.9]), torch.randn(2, 5, 24), torch.randn(2, 24))
    by_pixels = network(pictures[:2], *rest)
    by_maps = network(network.components.analyse(pictures[:2]), *rest, in_components=True)
    assert by_maps.shape == (2, 12, 4, 4)
    torch.testing.assert_close(network.components.synthesise(by_maps), by_pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"patch_bottleneck": 0}, "from 1 to 192"), ({"patch_bottleneck": 193}, "from 1 to 192"),
     ({"prediction": "v"}, "must be x"), ({"patch_space": "latents"}, "pixels, components")],
)
def test_a_config_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_another_noise_scale_is_another_time(fitted: PatchComponents, pictures: torch.Tensor, t: float) -> None:
    """At the time with the same ratio of noise and picture the network is shown and asked for the same."""
    ratio = 8.0 * t / (1 - t)
    later = ratio / (2.0 + ratio)
    maps = fitted.analyse(pictures[:4])
    unit = torch.randn(maps.shape, generator=torch.Generator().manual_seed(2))
    shown, asked = [], []
    for time, scale in ((t, 8.0), (later, 2.0)):
        into, kept, out = (part.view(12, 1, 1) for part in fitted.scales(torch.tensor([time]), scale))
        noisy = (1 - time) * maps + time * scale * unit
        shown.append(noisy * into)
        asked.append((maps - kept * noisy) / out)
    torch.testing.assert_close(shown[0], shown[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(asked[0], asked[1], atol=1e-3, rtol=1e-3)
