"""How long the passes of a plan take here, by timing one of each kind.

A network of the plan's shape is made with random weights: how long a pass takes does not depend on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mezzotint.dit.block_order import skip_modules
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.model import DiT
from mezzotint.dit.packed_linears import packed_linears
from mezzotint.kernels.stopwatch import interleaved_medians
from mezzotint.sampling.plan import StepPlan

ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PassKind:
    """rows: branches of guidance in one pass. modules: whether the sparse-dense modules run."""

    rows: int
    grid: Grid
    sparse_grid: Grid | None
    modules: bool


def pass_kinds(step: StepPlan) -> list[PassKind]:
    """The passes of one picture at a step; branches that compute alike share one. Where a cache decides while drawing,
    the modules are taken to run."""
    return [
        PassKind(
            rows=step.branches.count(branch), grid=step.grid, sparse_grid=branch.sparse_grid,
            modules=not (step.cached or branch.skips_modules),
        )
        for branch in dict.fromkeys(step.branches)
    ]


def step_seconds(
    steps: Sequence[StepPlan], config: DiTConfig | ClassDiTConfig, device: torch.device, dtype: torch.dtype
) -> list[float]:
    """Seconds of the network's passes at each step of one picture: medians of each kind of pass, timed now."""
    kinds = list(dict.fromkeys(kind for step in steps for kind in pass_kinds(step)))
    seconds = _time(_random_network(config, device, dtype), kinds, device)
    return [sum(seconds[kind] for kind in pass_kinds(step)) for step in steps]


@torch.no_grad()
def _time(network: DiT | ClassDiT, kinds: Sequence[PassKind], device: torch.device) -> dict[PassKind, float]:
    calls = {str(place): _call(network, kind, device) for place, kind in enumerate(kinds)}
    with packed_linears(network):  # as in a drawing
        medians = interleaved_medians(calls, device, rounds=ROUNDS)
    return {kind: medians[str(place)] for place, kind in enumerate(kinds)}


def _call(network: DiT | ClassDiT, kind: PassKind, device: torch.device) -> Callable[[], Tensor]:
    inputs, module_pass = _inputs(network.shape, kind, device), None if kind.modules else skip_modules
    return lambda: network(*inputs, grid=kind.sparse_grid, module_pass=module_pass)


def _random_network(
    config: DiTConfig | ClassDiTConfig, device: torch.device, dtype: torch.dtype
) -> DiT | ClassDiT:
    """Normal weights of deviation 0.02: attention and gates do work, and nothing overflows."""
    with torch.device("meta"):
        network = DiT(**asdict(config)) if isinstance(config, DiTConfig) else ClassDiT(**asdict(config))
    shapes = {name: kept.shape for name, kept in network.state_dict().items()}
    state = {name: torch.randn(shape, dtype=dtype, device=device) * 0.02 for name, shape in shapes.items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


def _inputs(config: DiTConfig | ClassDiTConfig, kind: PassKind, device: torch.device) -> tuple[Tensor, ...]:
    height, width = (side * config.patch_size for side in kind.grid)
    x = torch.randn(kind.rows, config.in_channels, height, width, device=device)
    t = torch.full((kind.rows,), 0.5, device=device)
    if isinstance(config, DiTConfig):
        text = torch.randn(kind.rows, config.max_text_tokens, config.text_size, device=device)
        return x, t, text, text.mean(1), torch.ones(text.shape[:2], dtype=torch.bool, device=device)
    return x, t * 1000, torch.zeros(kind.rows, dtype=torch.long, device=device)
