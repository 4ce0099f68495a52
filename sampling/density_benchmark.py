"""A pretrained DiT at several token densities beside diffusers' own dense one, with the same weights, in one run.

What is timed is one pass of the network on a guided batch (two latents a picture), for each grid that the schedule
takes; the seconds of a whole drawing are these medians, each counted as often as its grid comes, and for our networks
the packing of their weights at the start of a drawing. The scheduler's own arithmetic, the same for all sides and a few
milliseconds, is left out.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from mezzotint.dit.checkpoints.diffusers_dit import from_diffusers_dit
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.density import DensitySchedule, Grid
from mezzotint.dit.latent_flops import latent_flops
from mezzotint.dit.packed_linears import packed_linears
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import LAYOUTS
from mezzotint.kernels.stopwatch import interleaved_medians

SCHEDULES = {256: (0.61, 0.86), 512: (0.90, 0.96)}
"""Published pairs of pruning rates by picture side (arXiv 2412.06028)."""

PIXELS_A_LATENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DensityRow:
    """Seconds and multiply-adds of one picture in num_steps guided steps. density: "dense" or the pruning rates."""

    model: str
    pixels: int
    density: str
    dtype: str
    num_steps: int
    macs: int
    ours_s: float
    diffusers_s: float

    @property
    def speedup(self) -> float:
        return self.diffusers_s / self.ours_s


def measure_density(pixels: int, num_steps: int, dtype: torch.dtype, device: torch.device) -> Iterator[DensityRow]:
    """DiT-XL/2 with random weights at 256 or 512 pixels: our dense network, then the published segments and schedule.

    Raises ValueError for other sizes.
    """
    if pixels not in SCHEDULES:
        raise ValueError(f"pixels is {pixels}; it must be one of {', '.join(map(str, SCHEDULES))}.")
    theirs = _random_diffusers_dit(pixels // PIXELS_A_LATENT, dtype, device)
    dense = from_diffusers_dit(theirs.config, theirs.state_dict())
    sparse = recut(dense, LAYOUTS[f"dit-xl-{pixels}"].layout)
    schedule = DensitySchedule(r_min=SCHEDULES[pixels][0], r_max=SCHEDULES[pixels][1])
    grids = Counter(schedule.step_grids(num_steps, dense.shape.own_grid))
    packing_s = _packing_seconds(sparse)
    with packed_linears(dense), packed_linears(sparse):
        seconds = _time(theirs, dense, sparse, list(grids), device)
    both: dict[str, Any] = {
        "model": "DiT-XL/2", "pixels": pixels, "dtype": str(dtype).removeprefix("torch."), "num_steps": num_steps,
        "diffusers_s": seconds["diffusers"] * num_steps,
    }
    yield DensityRow(
        **both, density="dense", macs=_macs(dense, None) * num_steps, ours_s=packing_s + seconds["dense"] * num_steps
    )
    yield DensityRow(
        **both, density=f"{schedule.r_min:g}-{schedule.r_max:g}",
        macs=sum(_macs(sparse, grid) * count for grid, count in grids.items()),
        ours_s=packing_s + sum(seconds[str(grid)] * count for grid, count in grids.items()),
    )


def _packing_seconds(network: ClassDiT) -> float:
    """What a drawing takes to pack the weights; 0 where nothing is packed."""
    start = time.perf_counter()
    with packed_linears(network):
        return time.perf_counter() - start


def _macs(network: ClassDiT, grid: Grid | None) -> int:
    """Multiply-adds of one guided pass."""
    return latent_flops(network.shape, network.shape.own_grid, grid, as_published=True)  # two passes, half their FLOPs


def _random_diffusers_dit(
    sample_size: int, dtype: torch.dtype, device: torch.device
) -> diffusers.DiTTransformer2DModel:
    """Normal weights of deviation 0.02: attention and gates do work, and nothing overflows."""
    with torch.device("meta"):
        network = diffusers.DiTTransformer2DModel(sample_size=sample_size, out_channels=8)
    state = {
        name: (torch.randn(p.shape, dtype=dtype, device=device) * 0.02) for name, p in network.state_dict().items()
    }
    for name in state:  # each block holds a copy of the same embeddings, as in converted checkpoints
        if ".norm1.emb." in name:
            state[name] = state["transformer_blocks.0.norm1.emb." + name.split(".norm1.emb.")[1]]
    network.load_state_dict(state, assign=True)
    # Positions are no part of a file, so they are still without values.
    network.pos_embed = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, num_layers=1, sample_size=sample_size, out_channels=8
    ).pos_embed.to(device, dtype)
    network.pos_embed.proj.load_state_dict(
        {part: state[f"pos_embed.proj.{part}"] for part in ("weight", "bias")}, assign=True
    )
    return network.eval()


@torch.no_grad()
def _time(
    theirs: diffusers.DiTTransformer2DModel, dense: ClassDiT, sparse: ClassDiT, grids: list[Grid], device: torch.device
) -> dict[str, float]:
    side = theirs.config.sample_size
    x = torch.randn(2, 4, side, side, dtype=dense.dtype, device=device)
    t, labels = torch.full((2,), 500, device=device), torch.tensor([7, 1000], device=device)
    calls: dict[str, Callable[[], Tensor]] = {
        "diffusers": lambda: theirs(x, timestep=t, class_labels=labels).sample,
        "dense": lambda: dense(x, t, labels),
    }
    for grid in grids:
        calls[str(grid)] = lambda grid=grid: sparse(x, t, labels, grid)  # type: ignore[misc]
    return interleaved_medians(calls, device, rounds=5)
