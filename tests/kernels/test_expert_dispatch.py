"""Expert dispatch against an explicit fp64 computation with autograd's gradients."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.kernels.expert_dispatch import chosen_backend, gather_tokens, grouped_linear, last_backend, scatter_add
from mezzotint.kernels.expert_routing import expert_choice, token_choice
from mezzotint.kernels.native_build import why_not_native

WHY_NOT = why_not_native()
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=f"no C library: {WHY_NOT}")
WIDE_BACKENDS = ("reference", "torch")  # of any floating dtype
BACKENDS = (*WIDE_BACKENDS, pytest.param("cpu", marks=needs_compiler))
DTYPES = (torch.float32, torch.bfloat16)
# Rows of each expert: some have none, one has one; or all have as many.
COUNTS = ([0, 5, 1, 0, 9], [7], [0, 0], [3, 64, 20], [6, 6, 6])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def results(
    function: Callable[..., Tensor], inputs: list[Tensor], rounded_to: torch.dtype = torch.float32
) -> list[Tensor]:
    """The output, and the gradients of the inputs for the same gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    d_out = normal(*out.shape, seed=9, dtype=rounded_to).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def check_results(ours: Callable[..., Tensor], explicit: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Errors against fp64 are at most 2 (output) and 3 (gradients) times those of the explicit computation in the same
    dtype, or of rounding the right answer to it."""
    right = results(explicit, [tensor.double() for tensor in inputs], inputs[0].dtype)
    found, theirs = (results(function, inputs, inputs[0].dtype) for function in (ours, explicit))
    for at, (got, other, want) in enumerate(zip(found, theirs, right, strict=True)):
        dtype = inputs[max(at - 1, 0)].dtype
        assert got.dtype == dtype
        assert got.shape == want.shape
        if want.numel() == 0:
            continue
        error, allowed = (got - want).abs().max(), (other - want).abs().max()
        rounding = torch.finfo(dtype).eps / 2 * want.abs().max()
        assert error <= (2 if at == 0 else 3) * max(allowed, rounding), f"result {at} is {error} off; {allowed}"


def explicit_linear(offsets: list[int]) -> Callable[..., Tensor]:
    def linear(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        unused = 0 * (x.sum() + weights.sum() + (0 if bias is None else bias.sum()))
        rows = [x.new_zeros(0, weights.shape[2]) + unused]
        for expert, (start, end) in enumerate(pairwise(offsets)):
            product = x[start:end] @ weights[expert]
            rows.append(product if bias is None else product + bias[expert])
        return torch.cat(rows)

    return linear


def explicit_scatter(index: list[int], num_tokens: int) -> Callable[..., Tensor]:
    def scatter(y: Tensor, gate: Tensor | None = None) -> Tensor:
        rows = [y.new_zeros(y.shape[1]) + 0 * y.sum() for _ in range(num_tokens)]
        for at, token in enumerate(index):
            rows[token] = rows[token] + (y[at] if gate is None else gate[at] * y[at])
        return torch.stack(rows).to(y.dtype)

    return scatter


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_each_row_meets_its_experts_weights(
    counts: list[int], with_bias: bool, dtype: torch.dtype, backend: str
) -> None:
    offsets = offsets_of(counts)
    shapes = [(sum(counts), 24), (len(counts), 24, 40), (len(counts), 40)][: 3 if with_bias else 2]
    inputs = [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def ours(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        return grouped_linear(x, weights, bias, offsets, backend=backend)

    check_results(ours, explicit_linear(offsets.tolist()), inputs)
    assert last_backend() == backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_dtype", [None, torch.float32, torch.bfloat16])
def test_scatter_sums_what_each_token_is_assigned(
    gate_dtype: torch.dtype | None, dtype: torch.dtype, backend: str
) -> None:
    index = [3, 0, 3, 3, 6, 0, 1]  # tokens 2, 4 and 5 get nothing
    inputs = [normal(7, 40, seed=1, dtype=dtype)]
    if gate_dtype is not None:
        inputs.append(normal(7, seed=2, dtype=gate_dtype))

    def ours(y: Tensor, gate: Tensor | None = None) -> Tensor:
        return scatter_add(y, torch.tensor(index), gate, 7, backend=backend)

    check_results(ours, explicit_scatter(index, 7), inputs)
    assert last_backend() == backend
    assert not ours(*inputs)[[2, 4, 5]].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_takes_rows_and_its_gradient_sums_them(dtype: torch.dtype, backend: str) -> None:
    index = torch.tensor([4, 4, 0, 2, 4])
    check_results(
        lambda x: gather_tokens(x, index, backend=backend),
        lambda x: torch.stack([x[token] for token in index.tolist()]),
        [normal(6, 40, seed=1, dtype=dtype)],
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_assigned_gives_zeros_and_zero_gradients(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    x, weights = normal(3, 8, seed=1).requires_grad_(), normal(2, 8, 4, seed=2).requires_grad_()
    offsets = torch.zeros(3, dtype=torch.int64)
    rows = grouped_linear(gather_tokens(x, none, backend=backend), weights, None, offsets, backend=backend)
    out = scatter_add(rows, none, torch.zeros(0), 3, backend=backend)
    assert out.shape == (3, 4)
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out, (x, weights), torch.ones_like(out)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_are_read_in_place(backend: str) -> None:
    x, weights = normal(9, 30, seed=1)[:, 3:27], normal(2, 40, 24, seed=2).transpose(1, 2)
    offsets = offsets_of([4, 5])
    want = grouped_linear(x.contiguous(), weights.contiguous(), None, offsets, backend=backend)
    torch.testing.assert_close(grouped_linear(x, weights, None, offsets, backend=backend), want)


@pytest.mark.parametrize("backend", WIDE_BACKENDS)
def test_gradients_pass_gradcheck_in_fp64(backend: str) -> None:
    index, offsets = torch.tensor([2, 0, 2, 1]), offsets_of([3, 0, 1])
    inputs = [normal(3, 4, seed=1), normal(3, 4, 5, seed=2), normal(3, 5, seed=3), normal(4, seed=4)]

    def layer(x: Tensor, weights: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        rows = gather_tokens(x, index, backend=backend)
        rows = grouped_linear(rows, weights, bias, offsets, backend=backend)
        return scatter_add(rows, index, gate, 3, backend=backend)

    assert torch.autograd.gradcheck(layer, [tensor.double().requires_grad_() for tensor in inputs])


def experts_one_hot(x: Tensor, scores: Tensor, w1: Tensor, w2: Tensor, capacity: int) -> Tensor:
    """Expert choice as the public MicroDiT code computes it, for one picture: products with a one-hot matrix."""
    gate, index = scores.t().topk(capacity, dim=1)
    chosen = F.one_hot(index, len(x)).to(x.dtype)
    rows = torch.einsum("ekt,tc->ekc", chosen, x)
    rows = torch.einsum("ekf,efc->ekc", F.gelu(torch.einsum("ekc,ecf->ekf", rows, w1)), w2)
    return torch.einsum("ek,ekt,ekc->tc", gate, chosen, rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixture_with_expert_choice_equals_the_one_hot_formulation(backend: str) -> None:
    B, N, C, E, capacity = 2, 12, 8, 3, 5
    inputs = [normal(B, N, C, seed=1), normal(B, N, E, seed=2), normal(E, C, 10, seed=3), normal(E, 10, C, seed=4)]
    if backend != "cpu":
        inputs = [tensor.double() for tensor in inputs]

    def ours(x: Tensor, scores: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        routing = expert_choice(scores.softmax(2), capacity)
        rows = gather_tokens(x.reshape(B * N, C), routing.index, backend=backend)
        rows = F.gelu(grouped_linear(rows, w1, None, routing.offsets, backend=backend))
        rows = grouped_linear(rows, w2, None, routing.offsets, backend=backend)
        return scatter_add(rows, routing.index, routing.gate, B * N, backend=backend).reshape(x.shape)

    def one_hot(x: Tensor, scores: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return torch.stack([experts_one_hot(x[b], scores[b].softmax(1), w1, w2, capacity) for b in range(B)])

    for got, want in zip(results(ours, inputs), results(one_hot, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_expert_choice_takes_the_best_tokens_of_each_picture() -> None:
    scores = torch.rand(3, 10, 4, generator=torch.Generator().manual_seed(1))
    routing = expert_choice(scores, 2)
    assert routing.offsets.tolist() == [0, 6, 12, 18, 24]
    for expert in range(4):
        rows = slice(6 * expert, 6 * expert + 6)
        best = [b * 10 + n for b in range(3) for n in sorted(range(10), key=lambda n: -scores[b, n, expert])[:2]]
        assert sorted(routing.index[rows].tolist()) == sorted(best)
        assert torch.equal(routing.gate[rows], scores.reshape(30, 4)[routing.index[rows], expert])


@given(tokens=st.integers(0, 20), experts=st.integers(1, 6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_token_choice_assigns_each_token_to_its_best_experts(tokens: int, experts: int, data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, experts))
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens))
    routing = token_choice(scores, num_experts)
    offsets = routing.offsets.tolist()
    assert offsets == sorted(offsets)
    assert (offsets[0], offsets[-1]) == (0, tokens * num_experts)
    found = [
        (token, expert)
        for expert in range(experts)
        for token in routing.index[offsets[expert] : offsets[expert + 1]].tolist()
    ]
    best = [(t, e) for t in range(tokens) for e in sorted(range(experts), key=lambda e: -scores[t, e])[:num_experts]]
    assert sorted(found) == sorted(best)
    assert routing.gate.tolist() == [scores[token, expert].item() for token, expert in found]


def test_gates_pass_gradients_to_the_scores() -> None:
    scores = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for routing in (expert_choice(scores, 2), token_choice(scores.flatten(0, 1), 2)):
        (gradient,) = torch.autograd.grad(routing.gate.sum(), scores)
        assert gradient.sum() == len(routing.index)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_accepts_the_registrations(backend: str) -> None:
    ops: Any = torch.ops.mezzotint
    x, weights, bias, gate = (normal(*shape, seed=1).requires_grad_() for shape in ((5, 8), (2, 8, 4), (2, 4), (5,)))
    index, offsets = torch.tensor([2, 0, 2, 1, 4]), offsets_of([3, 2])
    torch.library.opcheck(ops.gather_tokens.default, (x, index, backend))
    torch.library.opcheck(ops.grouped_linear.default, (x, weights, bias, offsets, backend))
    torch.library.opcheck(ops.grouped_linear.default, (x, weights, None, offsets, backend))
    torch.library.opcheck(ops.scatter_add.default, (x, index, gate, 6, backend))
    torch.library.opcheck(ops.scatter_add.default, (x, index, None, 6, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    def layer(x: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
        routing = token_choice(scores.softmax(1), 2)
        rows = gather_tokens(x, routing.index, backend=backend)
        rows = grouped_linear(rows, weights, None, routing.offsets, backend=backend)
        return scatter_add(rows, routing.index, routing.gate, x.shape[0], backend=backend)

    inputs = [normal(6, 8, seed=1), normal(6, 3, seed=2), normal(3, 8, 4, seed=3)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, want in zip(results(compiled, inputs), results(layer, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_the_flop_counter_counts_each_row_once() -> None:
    x, weights = normal(10, 8, seed=1).requires_grad_(), normal(5, 8, 4, seed=2).requires_grad_()
    counter = FlopCounterMode(display=False)
    with counter:
        grouped_linear(x, weights, None, offsets_of([2, 0, 3, 4, 1]), backend="reference").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 8 * 4


def test_the_backend_is_known_before_and_after() -> None:
    x = normal(4, 8, seed=1)
    assert chosen_backend(x.half()) == chosen_backend(x.double()) == "torch"
    assert chosen_backend(x.to("meta")) == "reference"
    assert chosen_backend(x, backend="reference") == "reference"
    gather_tokens(x.half(), torch.tensor([1]))
    assert last_backend() == "torch"
    if WHY_NOT is None:
        assert chosen_backend(x) == chosen_backend(x.bfloat16()) == "cpu"
        gather_tokens(x, torch.tensor([1]))
        assert last_backend() == "cpu"


X, INDEX, OFFSETS = torch.zeros(4, 8), torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 4])
WEIGHTS = torch.zeros(2, 8, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather_tokens(X, INDEX, backend="gpu"), "backend is 'gpu'; expected one of auto, reference, torch, c"),
        (lambda: gather_tokens(X, INDEX, backend="triton"), "backend is 'triton'; it cannot run here, since"),
        (lambda: gather_tokens(X.half(), INDEX, backend="cpu"), "it cannot run here, since x is of torch.float16"),
        (lambda: gather_tokens(X[0], INDEX), r"x is of shape \[8\]; expected \[tokens, channels\]"),
        (lambda: gather_tokens(X, INDEX.int()), "index is of torch.int32; expected torch.int64"),
        (lambda: gather_tokens(X, INDEX[None]), r"index is of shape \[1, 4\]; expected one dimension"),
        (lambda: gather_tokens(X, INDEX + 1), "index has values from 1 to 4; expected 0 to 3"),
        (lambda: gather_tokens(X, INDEX - 1), "index has values from -1 to 2; expected 0 to 3"),
        (lambda: grouped_linear(X, WEIGHTS[:, :7], None, OFFSETS), r"weights is of shape \[2, 7, 6\]"),
        (lambda: grouped_linear(X, WEIGHTS.double(), None, OFFSETS), "weights is of torch.float64; expected torch.fl"),
        (lambda: grouped_linear(X, WEIGHTS, torch.zeros(2, 5), OFFSETS), r"bias is of shape \[2, 5\]; expected shape"),
        (lambda: grouped_linear(X, WEIGHTS, None, OFFSETS[:2]), r"offsets is of shape \[2\]; expected shape \[3\]"),
        (lambda: grouped_linear(X, WEIGHTS, None, torch.tensor([0, 4, 3])), r"offsets is \[0, 4, 3\]; expected asc"),
        (lambda: grouped_linear(X, WEIGHTS, None, torch.tensor([0, 2, 3])), r"offsets is \[0, 2, 3\]; expected asc"),
        (lambda: grouped_linear(X, WEIGHTS, None, torch.tensor([1, 2, 4])), r"offsets is \[1, 2, 4\]; expected asc"),
        (lambda: scatter_add(X, INDEX[:3], None, 4), r"index is of shape \[3\]; expected shape \[4\], one for each"),
        (lambda: scatter_add(X, INDEX, torch.zeros(3), 4), r"gate is of shape \[3\]; expected shape \[4\]"),
        (lambda: scatter_add(X, INDEX, None, 3), "index has values from 0 to 3; expected 0 to 2"),
        (lambda: scatter_add(X, INDEX, None, -1), "num_tokens is -1; expected at least 0"),
        (lambda: expert_choice(torch.zeros(1, 4, 2), 5), "capacity is 5; expected 1 to 4"),
        (lambda: token_choice(torch.zeros(4, 2), 0), "num_experts is 0; expected 1 to 2"),
        (lambda: token_choice(torch.zeros(1, 4, 2), 1), r"scores is of shape \[1, 4, 2\]; expected \[tokens, experts"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
