"""Experts in one operation against an explicit fp64 computation, and against the operations that it stands for."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.kernels.expert_backends import chosen_backend, last_backend
from mezzotint.kernels.expert_dispatch import gather_tokens, grouped_linear, scatter_add
from mezzotint.kernels.expert_mlp import expert_mlp
from mezzotint.kernels.expert_routing import ExpertRouting, expert_choice
from mezzotint.kernels.native_build import why_not_native

WHY_NOT = why_not_native()
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=f"no C library: {WHY_NOT}")
WIDE_BACKENDS = ("reference", "torch")  # of any floating dtype
BACKENDS = (*WIDE_BACKENDS, pytest.param("cpu", marks=needs_compiler))
DTYPES = (torch.float32, torch.bfloat16)
TOKENS, WIDTH, HIDDEN = 9, 24, 40
# Rows of each expert: as many for all, or not, and some have none.
COUNTS = ([4, 4, 4], [0, 5, 1, 0, 9])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lists(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens of the assignments, and offsets; the last token has none."""
    index = torch.randint(TOKENS - 1, (sum(counts),), generator=torch.Generator().manual_seed(1))
    return index, torch.tensor([0, *counts]).cumsum(0)


def drawn(counts: list[int], dtype: torch.dtype) -> list[Tensor]:
    """x, gate, w1 and w2."""
    E, A = len(counts), sum(counts)
    shapes = ((TOKENS, WIDTH), (A,), (E, WIDTH, HIDDEN), (E, HIDDEN, WIDTH))
    return [(normal(*shape, seed=i) / shape[-1] ** 0.25).to(dtype) for i, shape in enumerate(shapes)]


def explicit(index: Tensor, offsets: Tensor) -> Callable[..., Tensor]:
    def experts(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        out = torch.zeros_like(x) + 0 * (x.sum() + w1.sum() + w2.sum())
        for expert, (start, end) in enumerate(pairwise(offsets.tolist())):
            for a in range(start, end):
                row = F.gelu(x[index[a]] @ w1[expert]) @ w2[expert]
                out = out.index_add(0, index[a : a + 1], (gate[a] * row)[None])
        return out

    return experts


def ours(index: Tensor, offsets: Tensor, backend: str) -> Callable[..., Tensor]:
    return lambda x, gate, w1, w2: expert_mlp(x, ExpertRouting(index, gate, offsets), w1, w2, backend=backend)


def results(function: Callable[..., Tensor], inputs: list[Tensor], d_out: Tensor) -> list[Tensor]:
    """The output, and the gradients of all inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out.to(out.dtype))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_output_and_gradients_are_as_exact_as_the_explicit_computation(
    counts: list[int], dtype: torch.dtype, backend: str
) -> None:
    """Errors against fp64 are at most 2 (output) and 3 (gradients) times those of the explicit computation in the same
    dtype, or of rounding the right answer to it."""
    index, offsets = lists(counts)
    inputs, d_out = drawn(counts, dtype), normal(TOKENS, WIDTH, seed=9, dtype=dtype)
    right = results(explicit(index, offsets), [tensor.double() for tensor in inputs], d_out)
    theirs = results(explicit(index, offsets), inputs, d_out)
    found = results(ours(index, offsets, backend), inputs, d_out)
    assert last_backend() == backend
    for at, (got, other, want) in enumerate(zip(found, theirs, right, strict=True)):
        assert (got.dtype, got.shape) == (dtype, want.shape)
        error, allowed = (got - want).abs().max(), (other - want).abs().max()
        rounding = torch.finfo(dtype).eps / 2 * want.abs().max()
        assert error <= (2 if at == 0 else 3) * max(allowed, rounding), f"result {at} is {error} off; {allowed}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_it_is_the_operations_that_it_stands_for(counts: list[int], dtype: torch.dtype, backend: str) -> None:
    index, offsets = lists(counts)

    def one_by_one(x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        rows = gather_tokens(x, index, backend=backend)
        rows = F.gelu(grouped_linear(rows, w1, None, offsets, backend=backend))
        rows = grouped_linear(rows, w2, None, offsets, backend=backend)
        return scatter_add(rows, index, gate, TOKENS, backend=backend)

    inputs, d_out = drawn(counts, dtype), normal(TOKENS, WIDTH, seed=9, dtype=dtype)
    found, want = (results(function, inputs, d_out) for function in (ours(index, offsets, backend), one_by_one))
    assert all(torch.equal(got, other) for got, other in zip(found, want, strict=True))
    with torch.no_grad():  # the GELU works in place: on its own memory
        assert torch.equal(ours(index, offsets, backend)(*inputs), want[0])
    assert all(torch.equal(tensor, other) for tensor, other in zip(inputs, drawn(counts, dtype), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_widths_in_and_out_may_differ(backend: str) -> None:
    index, offsets = lists([2, 3])
    x, gate, w1, w2 = (normal(*shape, seed=1) for shape in ((TOKENS, 6), (5,), (2, 6, 8), (2, 8, 3)))
    out = ours(index, offsets, backend)(x, gate, w1, w2)
    want = torch.zeros(TOKENS, 3)
    for a, expert in enumerate([0, 0, 1, 1, 1]):
        want[index[a]] += gate[a] * (F.gelu(x[index[a]] @ w1[expert]) @ w2[expert])
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_assigned_gives_zeros_and_zero_gradients(backend: str) -> None:
    index, offsets = torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    out, *gradients = results(ours(index, offsets, backend), drawn([0, 0, 0], torch.float32), torch.ones(TOKENS, WIDTH))
    assert out.shape == (TOKENS, WIDTH)
    assert not any(tensor.any() for tensor in (out, *gradients))


@pytest.mark.parametrize("backend", WIDE_BACKENDS)
@pytest.mark.parametrize("counts", [[2, 2], [3, 0, 1]], ids=str)
def test_gradients_pass_gradcheck_in_fp64(counts: list[int], backend: str) -> None:
    index, offsets = torch.tensor([2, 0, 2, 1]), torch.tensor([0, *counts]).cumsum(0)
    E = len(counts)
    shapes = ((3, 4), (4,), (E, 4, 5), (E, 5, 4))
    inputs = [normal(*shape, seed=i).double().requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(ours(index, offsets, backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", range(4), ids=("x", "gate", "w1", "w2"))
def test_each_gradient_is_there_when_it_alone_is_asked_for(which: int, backend: str) -> None:
    index, offsets = lists([4, 4, 4])
    inputs, d_out = drawn([4, 4, 4], torch.float32), normal(TOKENS, WIDTH, seed=9)
    want = results(ours(index, offsets, backend), inputs, d_out)[1 + which]
    inputs[which].requires_grad_()
    (got,) = torch.autograd.grad(ours(index, offsets, backend)(*inputs), inputs[which], d_out)
    assert torch.equal(got, want)


def test_scores_learn_through_the_gates() -> None:
    scores = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x, w1, w2 = (normal(*shape, seed=2) for shape in ((12, 4), (3, 4, 8), (3, 8, 4)))
    routing = expert_choice(scores.softmax(2), 2)
    (gradient,) = torch.autograd.grad(expert_mlp(x, routing, w1, w2).sum(), scores)
    assert gradient.any(2).sum() > 0
    assert gradient.sum(2).abs().max() < 1e-5  # a softmax takes from one what it gives to another


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_accepts_the_registrations(backend: str) -> None:
    index, offsets = lists([3, 2])
    inputs = [tensor.requires_grad_() for tensor in drawn([3, 2], torch.float32)]
    for keep in (True, False):
        given = inputs if keep else [tensor.detach() for tensor in inputs]
        torch.library.opcheck(torch.ops.mezzotint.expert_mlp.default, (*given, index, offsets, keep, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    index, offsets = lists([4, 4, 4])
    inputs, d_out = drawn([4, 4, 4], torch.float32), normal(TOKENS, WIDTH, seed=9)
    compiled = torch.compile(ours(index, offsets, backend), fullgraph=True, backend="aot_eager")
    found, want = (results(function, inputs, d_out) for function in (compiled, ours(index, offsets, backend)))
    assert all(torch.equal(got, other) for got, other in zip(found, want, strict=True))


def test_the_flop_counter_counts_each_assignment_once() -> None:
    index, offsets = lists([2, 0, 3])
    inputs = [tensor.requires_grad_() for tensor in drawn([2, 0, 3], torch.float32)]
    counter = FlopCounterMode(display=False)
    with counter:
        ours(index, offsets, "reference")(*inputs).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * 2 * WIDTH * HIDDEN
    with torch.no_grad(), counter:
        ours(index, offsets, "reference")(*inputs)
    assert counter.get_total_flops() == 2 * 5 * 2 * WIDTH * HIDDEN


def test_the_backend_is_chosen_as_for_the_single_operations() -> None:
    index, offsets = lists([4, 4, 4])
    for dtype in (torch.float32, torch.float64):
        inputs = drawn([4, 4, 4], dtype)
        expert_mlp(inputs[0], ExpertRouting(index, inputs[1], offsets), *inputs[2:])
        assert last_backend() == chosen_backend(inputs[0])


GIVEN: dict[str, Any] = {
    "x": torch.zeros(4, 8), "index": torch.tensor([0, 1, 1, 3]), "gate": torch.zeros(4),
    "offsets": torch.tensor([0, 1, 4]), "w1": torch.zeros(2, 8, 6), "w2": torch.zeros(2, 6, 8), "backend": "auto",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "gpu"}, "backend is 'gpu'; expected one of auto, reference, torch, cpu, triton"),
        ({"x": torch.zeros(8)}, r"x is of shape \[8\]; expected \[tokens, channels\]"),
        ({"index": torch.zeros(4)}, "index is of torch.float32; expected torch.int64"),
        ({"index": torch.tensor([0, 1, 1, 4])}, "index has values from 0 to 4; expected 0 to 3"),
        ({"gate": torch.zeros(3)}, r"gate is of shape \[3\]; expected shape \[4\], one for each assignment"),
        ({"gate": torch.zeros(4, dtype=torch.int64)}, "gate is of torch.int64; expected a floating-point dtype"),
        ({"w1": torch.zeros(2, 7, 6)}, r"w1 is of shape \[2, 7, 6\].* with 8 channels"),
        ({"w1": torch.zeros(2, 8, 6).double()}, "w1 is of torch.float64; expected torch.float32, as x is"),
        ({"w2": torch.zeros(2, 7, 8)}, r"w2 is of shape \[2, 7, 8\].* with 6 channels"),
        ({"w2": torch.zeros(3, 6, 8)}, r"w2 is of shape \[3, 6, 8\]; expected 2 experts, as w1 has"),
        ({"offsets": torch.tensor([0, 4])}, r"offsets is of shape \[2\]; expected shape \[3\]"),
        ({"offsets": torch.tensor([0, 2, 3])}, r"offsets is \[0, 2, 3\]; expected ascending numbers from 0 to 4"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    given = GIVEN | changes
    routing = ExpertRouting(given["index"], given["gate"], given["offsets"])
    with pytest.raises(ValueError, match=message):
        expert_mlp(given["x"], routing, given["w1"], given["w2"], backend=given["backend"])
