"""The fused operations beside what they replace, in one run: experts, and the way to them and back alone, beside
one-hot products and plain torch; norm_modulate beside torch's operators.

Experts are two matrices with an exact GELU between them and expert-choice routing, as MicroDiT has them (arXiv
2407.15811): the scores are given, and each side does everything that comes after the choice. Shape suffixes: B
pictures, N tokens a picture, E experts, K tokens an expert takes of a picture, C channels, F hidden channels.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels import expert_backends, modulation
from mezzotint.kernels.attention_benchmark import PASSES
from mezzotint.kernels.expert_dispatch import gather_tokens, scatter_add
from mezzotint.kernels.expert_mlp import expert_mlp
from mezzotint.kernels.expert_routing import ExpertRouting, expert_choice
from mezzotint.kernels.modulation import norm_modulate
from mezzotint.kernels.modulation_reference import reference_norm_modulate
from mezzotint.kernels.stopwatch import interleaved_medians

HIDDEN_RATIO = 4
ROUNDS = 31

Call = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationsSweep:
    """What is measured: every combination. tokens are those of all pictures, picture_tokens of one (or all where there
    are fewer); capacity is how many experts a token has on average."""

    tokens: Sequence[int] = (64, 1024, 4096)
    picture_tokens: int = 256
    widths: Sequence[int] = (320, 512, 1024, 1152)
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32)
    passes: Sequence[str] = PASSES
    experts: int = 8
    capacities: Sequence[float] = (2.0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One point. seconds: medians by side. "ours" is one of them; of experts the others are "one_hot" (the public
    code's einsum), "torch" (index_select, a product an expert, index_add_) and "products" (the two products and the
    GELU alone, of rows that are already gathered: no side can be faster); of dispatch the first two of these; of
    norm_modulate "torch"."""

    operation: str
    tokens: int
    width: int
    experts: int | None
    capacity: float | None
    dtype: str
    direction: str
    backend: str
    seconds: Mapping[str, float]

    def over(self, side: str) -> float:
        """The side's time over ours: more than 1 is a win."""
        return self.seconds[side] / self.seconds["ours"]


def run_operations(sweep: OperationsSweep, device: torch.device) -> Iterator[Measured]:
    """Measure point by point: experts, dispatch alone, then norm_modulate."""
    for measure in (_experts, _dispatch):
        for tokens, width, dtype, capacity, direction in itertools.product(
            sweep.tokens, sweep.widths, sweep.dtypes, sweep.capacities, sweep.passes
        ):
            N = min(tokens, sweep.picture_tokens)
            yield measure(tokens // N, N, width, dtype, sweep.experts, capacity, direction, device)
    for tokens, width, dtype, direction in itertools.product(sweep.tokens, sweep.widths, sweep.dtypes, sweep.passes):
        N = min(tokens, sweep.picture_tokens)
        yield _modulation(tokens // N, N, width, dtype, direction, device)


def num_points(sweep: OperationsSweep) -> int:
    """How many `run_operations` yields."""
    shared = len(sweep.tokens) * len(sweep.widths) * len(sweep.dtypes) * len(sweep.passes)
    return shared * (2 * len(sweep.capacities) + 1)


def expert_sides(routing: ExpertRouting, B: int, N: int) -> dict[str, Call]:
    """Functions of x [B * N, C], gate [E * B * K], w1 [E, C, F] and w2 [E, F, C] that all give the same [B * N, C].

    routing: what `expert_choice` gives for B pictures of N tokens; its gates come as an argument, to have gradients.
    """
    index, offsets = routing.index, routing.offsets
    E = len(offsets) - 1
    chosen_BEK = (index.view(E, B, -1) % N).transpose(0, 1).contiguous()

    def ours(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return expert_mlp(x, ExpertRouting(index, gate, offsets), w1, w2)

    def plain(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        parts = x.index_select(0, index).split(len(index) // E)
        rows = torch.cat([
            F.gelu(part @ up) @ down for part, up, down in zip(parts, w1.unbind(), w2.unbind(), strict=True)
        ])
        return torch.zeros_like(x).index_add_(0, index, rows * gate[:, None])

    def one_hot(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        chosen_BEKN = F.one_hot(chosen_BEK, N).to(x.dtype)
        rows = torch.einsum("bekn,bnc->bekc", chosen_BEKN, x.view(B, N, -1))
        rows = torch.einsum("bekf,efc->bekc", F.gelu(torch.einsum("bekc,ecf->bekf", rows, w1)), w2)
        gate_BEK = gate.view(E, B, -1).transpose(0, 1)
        return torch.einsum("bekn,bekc->bnc", chosen_BEKN, rows * gate_BEK[..., None]).reshape(x.shape)

    return {"ours": ours, "one_hot": one_hot, "torch": plain}


def dispatch_sides(routing: ExpertRouting, B: int, N: int) -> dict[str, Call]:
    """As `expert_sides` without the experts: each takes its tokens as they are, and gives them back times its gates."""
    index, E = routing.index, len(routing.offsets) - 1
    chosen_BEK = (index.view(E, B, -1) % N).transpose(0, 1).contiguous()

    def ours(x: Tensor, gate: Tensor) -> Tensor:
        return scatter_add(gather_tokens(x, index), index, gate, len(x))

    def plain(x: Tensor, gate: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add_(0, index, x.index_select(0, index) * gate[:, None])

    def one_hot(x: Tensor, gate: Tensor) -> Tensor:
        chosen_BEKN = F.one_hot(chosen_BEK, N).to(x.dtype)
        rows = torch.einsum("bekn,bnc->bekc", chosen_BEKN, x.view(B, N, -1))
        gate_BEK = gate.view(E, B, -1).transpose(0, 1)
        return torch.einsum("bekn,bekc->bnc", chosen_BEKN, rows * gate_BEK[..., None]).reshape(x.shape)

    return {"ours": ours, "one_hot": one_hot, "torch": plain}


def products(rows: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """rows [E, A, C], w1 [E, C, F], w2 [E, F, C]: [E, A, C], by one batched product for each matrix."""
    return torch.bmm(F.gelu(torch.bmm(rows, w1)), w2)


def _experts(
    B: int, N: int, width: int, dtype: torch.dtype, experts: int, capacity: float, direction: str, device: torch.device
) -> Measured:
    K, hidden = max(1, int(capacity * N / experts)), HIDDEN_RATIO * width
    generator = torch.Generator().manual_seed(1)
    routing = expert_choice(torch.rand(B, N, experts, generator=generator).softmax(2).to(device), K)
    shapes = ((B * N, width), (experts, width, hidden), (experts, hidden, width), (experts, B * K, width))
    x, w1, w2, rows = (
        (torch.randn(shape, generator=generator) / width**0.5).to(device, dtype) for shape in shapes
    )
    given, backward = (x, routing.gate.to(dtype), w1, w2), direction != "forward"
    calls = {name: call_of(side, given, backward) for name, side in expert_sides(routing, B, N).items()}
    calls["products"] = call_of(products, (rows, w1, w2), backward)
    return Measured(
        operation="experts", tokens=B * N, width=width, experts=experts, capacity=capacity, dtype=_named(dtype),
        direction=direction, backend=expert_backends.chosen_backend(x),
        seconds=interleaved_medians(calls, device, ROUNDS),
    )


def _dispatch(
    B: int, N: int, width: int, dtype: torch.dtype, experts: int, capacity: float, direction: str, device: torch.device
) -> Measured:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(B, N, experts, generator=generator).softmax(2).to(device)
    routing = expert_choice(scores, max(1, int(capacity * N / experts)))
    x = torch.randn(B * N, width, generator=generator).to(device, dtype)
    given, backward = (x, routing.gate.to(dtype)), direction != "forward"
    calls = {name: call_of(side, given, backward) for name, side in dispatch_sides(routing, B, N).items()}
    return Measured(
        operation="dispatch", tokens=B * N, width=width, experts=experts, capacity=capacity, dtype=_named(dtype),
        direction=direction, backend=expert_backends.chosen_backend(x),
        seconds=interleaved_medians(calls, device, ROUNDS),
    )


def _modulation(B: int, N: int, width: int, dtype: torch.dtype, direction: str, device: torch.device) -> Measured:
    generator = torch.Generator().manual_seed(1)
    x, shift, scale = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((B, N, width), (B, width), (B, width))
    )
    sides: dict[str, Call] = {
        "ours": norm_modulate,
        "torch": lambda x, shift, scale: reference_norm_modulate(x, shift, scale, norm="layer", eps=1e-6),
    }
    calls = {name: call_of(side, (x, shift, scale), direction != "forward") for name, side in sides.items()}
    return Measured(
        operation="norm_modulate", tokens=B * N, width=width, experts=None, capacity=None,
        dtype=_named(dtype), direction=direction, backend=modulation.chosen_backend(x, shift, scale),
        seconds=interleaved_medians(calls, device, ROUNDS),
    )


def call_of(side: Call, given: Sequence[Tensor], backward: bool) -> Callable[[], Any]:
    """A call of `side`, with the gradients of all that is given where `backward` says so."""
    leaves = [tensor.detach().requires_grad_(backward) for tensor in given]
    upstream = torch.randn_like(side(*leaves))

    def call() -> Any:
        out = side(*leaves)
        return torch.autograd.grad(out, leaves, upstream) if backward else out

    return call


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
