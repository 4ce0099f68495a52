"""The price of a pass over latents: against torch's own counter, and against the published multiply-adds."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.density import DensitySchedule
from mezzotint.dit.latent_config import ClassDiTConfig, PixArtConfig
from mezzotint.dit.latent_flops import latent_flops
from mezzotint.dit.latent_network import LatentNetwork
from mezzotint.dit.pixart import PixArt
from mezzotint.dit.segment_layout import LAYOUTS
from mezzotint.dit.video_dit import VideoDiT

SMALL: dict[str, Any] = {"sample_size": 16, "hidden_size": 24, "num_layers": 7, "num_heads": 2, "mlp_ratio": 3.0}
CUT = {"segments": "1 + 1x[1,2,1,1] + 1"}
CASES: dict[str, tuple[type[LatentNetwork], dict[str, Any]]] = {
    "class, dense": (ClassDiT, {}),
    "class": (ClassDiT, CUT),
    "class, a condition a block": (ClassDiT, CUT | {"condition_per_block": True}),
    "class, positions again": (ClassDiT, CUT | {"readd_positions": True}),
    "video, dense": (VideoDiT, {"num_layers": 2, "num_frames": 3}),
    "video": (VideoDiT, CUT | {"num_layers": 14, "num_frames": 3}),
    "pixart, dense": (PixArt, {"text_size": 10}),
    "pixart": (PixArt, CUT | {"text_size": 10, "size_conditions": True}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("rows", "columns", "grid"), [(16, 16, (3, 3)), (8, 20, (2, 5))])
@torch.no_grad()
def test_the_price_of_a_pass_is_what_torch_counts(name: str, rows: int, columns: int, grid: tuple[int, int]) -> None:
    make, settings = CASES[name]
    network = make(**SMALL | settings).eval()
    frames = (3,) if make is VideoDiT else ()
    x, t = torch.randn(1, *frames, 4, rows, columns), torch.tensor([500.0])
    more: tuple[torch.Tensor, ...] = () if make is VideoDiT else (torch.tensor([7]),)
    sparse = grid if "segments" in settings else None
    extra: dict[str, Any] = {"grid": sparse}
    if make is PixArt:
        more = (torch.randn(1, 5, 10),)
    if settings.get("size_conditions"):
        extra |= {"sizes": torch.ones(1, 2), "aspect_ratios": torch.ones(1)}
    # Attention with a mask runs as plain matrix products, since torch does not count its fused one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, t, *more, **extra)
    priced = latent_flops(network.shape, (rows // 2, columns // 2), sparse, num_text_tokens=5)
    assert priced == counter.get_total_flops()


XL = {
    256: ClassDiTConfig(segments="2 + 4x[1,3,1,1] + 2"),
    512: ClassDiTConfig(sample_size=64, segments="2 + 4x[1,3,1,1] + 2"),
}
BASE = {"hidden_size": 768, "num_layers": 12, "num_heads": 12}


def gmac(
    config: ClassDiTConfig | PixArtConfig, sparse: tuple[int, int] | None = None, as_published: bool = True
) -> float:
    return latent_flops(config, config.own_grid, sparse, as_published=as_published) / 2e9


@pytest.mark.parametrize(
    ("config", "side", "published"),
    [
        (ClassDiTConfig(), None, 118.62), (ClassDiTConfig(sample_size=64), None, 524.5),
        (ClassDiTConfig(**BASE), None, 23.01),
        (XL[256], 8, 68.15), (XL[512], 8, 233.5), (XL[512], 16, 287.8),
        (ClassDiTConfig(segments=str(LAYOUTS["dit-xl-256"].layout)), 8, 68.97),
    ],
)
def test_the_published_multiply_adds_come_out(config: ClassDiTConfig, side: int | None, published: float) -> None:
    assert gmac(config, side and (side, side)) == pytest.approx(published, rel=1e-3)


def test_pixarts_layout_fits_the_reported_multiply_adds() -> None:
    config = PixArtConfig(segments=str(LAYOUTS["pixart-alpha-256"].layout))
    grids = [DensitySchedule().grid(stair.t_from, config.own_grid) for stair in DensitySchedule().stairs]
    assert gmac(PixArtConfig()) == pytest.approx(148.73, rel=5e-3)
    assert sum(gmac(config, grid) for grid in grids) / 4 == pytest.approx(91.62, rel=5e-3)


@pytest.mark.parametrize(
    ("size", "schedule", "published"),
    [(256, (0.61, 0.86), 69.8), (512, (0.90, 0.96), 235.2), (512, (0.61, 0.86), 293.0)],
)
def test_the_averages_over_four_stairs_come_out(size: int, schedule: tuple[float, float], published: float) -> None:
    density, config = DensitySchedule(r_min=schedule[0], r_max=schedule[1]), XL[size]
    grids = [density.grid(stair.t_from, config.own_grid) for stair in density.stairs]
    assert sum(gmac(config, grid) for grid in grids) / 4 == pytest.approx(published, rel=1e-3)


def test_what_we_compute_is_less_than_what_is_published() -> None:
    assert gmac(XL[512], (8, 8), as_published=False) < 0.96 * gmac(XL[512], (8, 8))
    dense = ClassDiTConfig()
    assert gmac(dense, as_published=False) == gmac(dense)


def test_a_grid_larger_than_the_full_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid is \(17, 17\)"):
        latent_flops(XL[256], (16, 16), (17, 17))
