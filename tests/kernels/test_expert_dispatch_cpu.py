"""The C kernels of expert dispatch: every instruction set, any number of threads, ragged rows, and indices that are no
tokens. What they compute is held against sums in fp64; test_expert_dispatch.py holds them against autograd, too."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import expert_dispatch_cpu, native_call
from mezzotint.kernels.expert_dispatch import chosen_backend, gather_tokens, last_backend, scatter_add
from mezzotint.kernels.native_build import why_not_native

WHY_NOT = why_not_native()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"no C library: {WHY_NOT}")

DTYPES = (torch.float32, torch.bfloat16)
# Channels: fewer than a vector, one, ragged after one and after four vectors, and a multiple of all.
WIDTHS = (1, 3, 16, 23, 70, 320)
TOKENS, ASSIGNMENTS = 37, 75  # several units of rows each, the last one ragged


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn_index(tokens: int = TOKENS, assignments: int = ASSIGNMENTS) -> Tensor:
    """The last token has nothing, the others 0 to several."""
    return torch.randint(tokens - 1, (assignments,), generator=torch.Generator().manual_seed(3))


def guarded(rows: Tensor) -> Tensor:
    """The same rows in a larger tensor of NaN: whatever is read outside of them spoils the result."""
    whole = torch.full((rows.shape[0] + 2, rows.shape[1] + 40), math.nan, dtype=rows.dtype)
    window = whole[1:-1, 20:-20]
    return window.copy_(rows)


def within(got: Tensor, want: Tensor, terms: int) -> None:
    """Rounding to got's dtype, and an fp32 sum of `terms` terms of the size of the largest result."""
    scale = want.abs().max()
    bound = torch.finfo(got.dtype).eps / 2 * scale + terms * torch.finfo(torch.float32).eps * max(scale, 1)
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= bound


def check_all(dtype: torch.dtype, gate_dtype: torch.dtype, width: int) -> None:
    index = drawn_index()
    x, y = normal(TOKENS, width, seed=1, dtype=dtype), normal(ASSIGNMENTS, width, seed=2, dtype=dtype)
    gate, d_out = normal(ASSIGNMENTS, seed=4, dtype=gate_dtype), normal(TOKENS, width, seed=5, dtype=dtype)
    assert torch.equal(expert_dispatch_cpu.gather(guarded(x), index), x[index])
    member = torch.zeros(TOKENS, ASSIGNMENTS, dtype=torch.float64)
    member[index, torch.arange(ASSIGNMENTS)] = 1.0
    within(expert_dispatch_cpu.scatter(guarded(y), index, None, TOKENS), member @ y.double(), 9)
    weighted = expert_dispatch_cpu.scatter(guarded(y), index, gate, TOKENS)
    within(weighted, (member * gate.double()) @ y.double(), 9)
    assert not weighted[-1].any()
    dy, d_gate = expert_dispatch_cpu.scatter_backward(guarded(d_out), guarded(y), index, gate)
    within(dy, gate.double()[:, None] * d_out.double()[index], 1)
    within(d_gate, (d_out.double()[index] * y.double()).sum(1), width)
    assert (dy.dtype, d_gate.dtype) == (dtype, gate_dtype)


@pytest.mark.parametrize("level", range(len(native_call.LEVELS)), ids=native_call.LEVELS)
@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_of_this_machine_is_right(
    dtype: torch.dtype, gate_dtype: torch.dtype, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level > native_call.LEVELS.index(native_call.instruction_set()):
        pytest.skip(f"this machine has no {native_call.LEVELS[level]}")
    monkeypatch.setattr(native_call, "_forced_level", level)
    for width in WIDTHS:
        check_all(dtype, gate_dtype, width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_moved_rows_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    index = drawn_index(300, 900)
    assert index.numel() * 64 > expert_dispatch_cpu.SERIAL_ELEMENTS  # else one thread does it all
    x, y, gate = (normal(*shape, seed=1, dtype=dtype) for shape in ((300, 64), (900, 64), (900,)))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([
                expert_dispatch_cpu.gather(x, index), expert_dispatch_cpu.scatter(y, index, gate, 300),
                *expert_dispatch_cpu.scatter_backward(x, y, index, gate),
            ])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, found[0], strict=True))


def test_a_sum_is_taken_in_the_order_of_the_assignments() -> None:
    y = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])  # 1e8 + 1 is 1e8 in fp32: another order gives 2 or 0
    for order, want in (([0, 1, 2, 3], 1.0), ([0, 2, 1, 3], 2.0), ([1, 3, 0, 2], 0.0)):
        assert scatter_add(y[order], torch.zeros(4, dtype=torch.int64), None, 1, backend="cpu").item() == want


def test_any_strides_are_taken() -> None:
    index, gate = torch.stack([drawn_index()] * 2, 1)[:, 0], normal(ASSIGNMENTS, 2, seed=4, dtype=torch.float32)[:, 0]
    x, y = normal(40, TOKENS, seed=1, dtype=torch.float32).t(), normal(40, ASSIGNMENTS, seed=2, dtype=torch.float32).t()
    one = normal(1, 40, seed=5, dtype=torch.float32).expand(TOKENS, 40)
    assert torch.equal(expert_dispatch_cpu.gather(x, index), x[index])
    calls: list[Callable[..., Tensor | tuple[Tensor, Tensor]]] = [
        lambda y, d_out, index, gate: expert_dispatch_cpu.scatter(y, index, gate, TOKENS),
        lambda y, d_out, index, gate: expert_dispatch_cpu.scatter_backward(d_out, y, index, gate)[0],
        lambda y, d_out, index, gate: expert_dispatch_cpu.scatter_backward(d_out, y, index, gate)[1],
    ]
    for call in calls:
        given = (y, one, index, gate)
        torch.testing.assert_close(call(*given), call(*(t.contiguous() for t in given)), rtol=0, atol=0)


def test_a_nan_stays_with_its_token() -> None:
    y = normal(4, 24, seed=1, dtype=torch.bfloat16)
    y[2, 23] = math.nan
    out = scatter_add(y, torch.tensor([0, 1, 3, 3]), torch.ones(4), 4, backend="cpu")
    assert out.isnan().nonzero().tolist() == [[3, 23]]


@pytest.mark.parametrize("wrong", [-1, TOKENS, 2**40, -(2**62)])
def test_an_index_that_is_no_token_is_refused_before_it_is_used(wrong: int) -> None:
    index = drawn_index()
    index[11] = wrong
    x, y = normal(TOKENS, 24, seed=1, dtype=torch.float32), normal(ASSIGNMENTS, 24, seed=1, dtype=torch.float32)
    gate, message = torch.ones(ASSIGNMENTS), rf"index has values from -?\d+ to \d+; expected 0 to {TOKENS - 1}"
    for call in (
        lambda: expert_dispatch_cpu.gather(x, index),
        lambda: expert_dispatch_cpu.scatter(y, index, gate, TOKENS),
        lambda: expert_dispatch_cpu.scatter_backward(x, y, index, gate),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert str(wrong) in str(caught.value)


def test_without_tokens_every_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index has values from 0 to 0; expected 0 to -1"):
        gather_tokens(torch.zeros(0, 8), torch.tensor([0]), backend="cpu")
    assert gather_tokens(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), backend="cpu").shape == (0, 8)


def test_without_a_compiler_auto_takes_torchs_operators_and_cpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_dispatch_cpu, "why_not_native", lambda: "no C compiler is found")
    x, index = torch.ones(2, 8), torch.tensor([1])
    assert chosen_backend(x) == "torch"
    gather_tokens(x, index)
    assert last_backend() == "torch"
    with pytest.raises(ValueError, match="backend is 'cpu'; it cannot run here, since no C compiler is found"):
        gather_tokens(x, index, backend="cpu")
