"""Block-sparse attention beside SDPA and compiled FlexAttention, at the same mask, in one run.

SDPA computes dense attention whatever the density, since that is what a model without this package would run.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels.attention_backends import chosen_backend
from mezzotint.kernels.block_sparse import block_sparse_attention
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.stopwatch import interleaved_medians

PASSES = ("forward", "forward+backward")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What is measured: every combination. block is the side of a block in tokens; flex False leaves FlexAttention
    out, whose compilation takes most of the time."""

    tokens: Sequence[int] = (64, 256, 1024, 2048, 4096)
    densities: Sequence[float] = (1.0, 0.5, 0.25, 0.125)
    head_dims: Sequence[int] = (64, 72, 128)
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32)
    passes: Sequence[str] = PASSES
    heads: int = 16
    block: int = 64
    flex: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One point. Seconds are medians; over_sdpa and over_flex are their time over ours, so more than 1 is a win.
    flex_s is None where FlexAttention cannot run, and flex_reason says why."""

    tokens: int
    heads: int
    head_dim: int
    dtype: str
    density: float
    block: int
    direction: str
    backend: str
    ours_s: float
    sdpa_s: float
    flex_s: float | None
    flex_reason: str | None

    @property
    def over_sdpa(self) -> float:
        return self.sdpa_s / self.ours_s

    @property
    def over_flex(self) -> float | None:
        return None if self.flex_s is None else self.flex_s / self.ours_s


def run_sweep(sweep: Sweep, device: torch.device) -> Iterator[Row]:
    """Measure point by point. Points whose density is less than one block a row of blocks are left out."""
    for tokens, head_dim, dtype, density in points(sweep):
        layout = random_layout(tokens, sweep.block, density, device)
        for direction in sweep.passes:
            yield _measure(sweep, layout, head_dim, dtype, direction, density, device)


def points(sweep: Sweep) -> list[tuple[int, int, torch.dtype, float]]:
    """(tokens, head_dim, dtype, density) of each point."""
    return [
        point for point in itertools.product(sweep.tokens, sweep.head_dims, sweep.dtypes, sweep.densities)
        if point[3] == 1.0 or point[3] * -(-point[0] // sweep.block) >= 1
    ]


def random_layout(tokens: int, block: int, density: float, device: torch.device) -> BlockLayout:
    """In each row of blocks the same number of blocks, its own among them, the others drawn with a fixed seed."""
    blocks = -(-tokens // block)
    order = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0))
    order.fill_diagonal_(-1.0)
    rank = order.argsort(dim=1).argsort(dim=1)
    mask = (rank < round(density * blocks))[None, None].to(device)
    return BlockLayout.from_dense(mask, block_q=block, block_k=block, num_q=tokens, num_k=tokens)


def _measure(
    sweep: Sweep, layout: BlockLayout, head_dim: int, dtype: torch.dtype, direction: str, density: float,
    device: torch.device,
) -> Row:
    generator = torch.Generator().manual_seed(1)
    shape = (1, sweep.heads, layout.num_q, head_dim)
    backward = direction != "forward"
    q, k, v = (
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(backward) for _ in range(3)
    )
    sides: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
        "ours": lambda q, k, v: block_sparse_attention(q, k, v, layout),
        "sdpa": F.scaled_dot_product_attention,
    }
    flex, reason = _flex(layout, q, k, v) if sweep.flex else (None, "left out by --no-flex")
    if flex is not None:
        sides["flex"] = flex
    calls = {name: _call(attend, (q, k, v), backward) for name, attend in sides.items()}
    seconds = interleaved_medians(calls, device)
    return Row(
        tokens=layout.num_q, heads=sweep.heads, head_dim=head_dim, dtype=str(dtype).removeprefix("torch."),
        density=density, block=sweep.block, direction=direction, backend=chosen_backend(q, k, v, layout),
        ours_s=seconds["ours"], sdpa_s=seconds["sdpa"], flex_s=seconds.get("flex"), flex_reason=reason,
    )


def _call(
    attend: Callable[[Tensor, Tensor, Tensor], Any], leaves: tuple[Tensor, Tensor, Tensor], backward: bool
) -> Callable[[], object]:
    upstream = torch.randn_like(leaves[0])

    def call() -> object:
        out = attend(*leaves)
        return torch.autograd.grad(out, leaves, upstream) if backward else out

    return call


def _flex(
    layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Callable[[Tensor, Tensor, Tensor], Any] | None, str | None]:
    """Compiled FlexAttention at the same mask, tried once; or None and the reason."""
    from torch.nn.attention.flex_attention import flex_attention

    if q.requires_grad and q.device.type == "cpu":
        return None, "FlexAttention has no backward on a CPU"
    torch._dynamo.reset()  # after eight recompilations it would fall back to eager
    compiled = torch.compile(flex_attention, fullgraph=True)
    mask = layout.to_block_mask()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return compiled(q, k, v, block_mask=mask)

    try:
        _call(attend, (q, k, v), q.requires_grad)()
    # What Dynamo, Inductor and its C++ compiler raise where they cannot; the reason goes into the row.
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        return None, f"FlexAttention does not run here ({str(error).strip().splitlines()[0][:200]})"
    return attend, None
