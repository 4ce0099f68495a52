"""The Triton kernels of norm_modulate and expert dispatch against the explicit reference in fp64: on a GPU, or on the
CPU in Triton's interpreter.

Guard values of NaN stand around the inputs.
"""

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import expert_dispatch, modulation
from mezzotint.kernels.expert_dispatch import gather_tokens, grouped_linear, scatter_add
from mezzotint.kernels.modulation import norm_modulate
from mezzotint.kernels.modulation_reference import reference_norm_modulate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"
BESIDE = "torch" if DEVICE == "cpu" else "reference"  # what computes in the same dtype, for its errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def guarded(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal values in a window of a larger tensor of NaN: any read outside the window spoils the result."""
    whole = torch.full((*(size + 1 for size in shape[:-1]), shape[-1] + 8), math.nan, dtype=dtype, device=DEVICE)
    window = whole[tuple(slice(0, size) for size in shape)]
    window.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return window


def results(function: Callable[..., Tensor], inputs: list[Tensor], rounded_to: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of the inputs for the same gradient of the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(rounded_to).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def check_results(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], explicit: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """Errors against fp64 are at most 2 (output) and 3 (gradients) times those of the same dtype without our kernels,
    or of rounding the right answer to it."""
    dtype = inputs[0].dtype
    right = results(explicit, [tensor.double() for tensor in inputs], dtype)
    found, beside = results(ours, inputs, dtype), results(theirs, inputs, dtype)
    for at, (got, other, want) in enumerate(zip(found, beside, right, strict=True)):
        kind = inputs[max(at - 1, 0)].dtype
        assert got.dtype == kind
        assert got.shape == want.shape
        error, allowed = (got - want).abs().max(), (other - want).abs().max()
        rounding = torch.finfo(kind).eps / 2 * want.abs().max()
        assert error <= (2 if at == 0 else 3) * max(allowed, rounding), f"result {at} is {error} off; {allowed}"


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("condition_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 19, 40), (1, 33, 144)])
def test_modulation(
    shape: tuple[int, int, int], dtype: torch.dtype, condition_dtype: torch.dtype | None, norm: str
) -> None:
    B, _, C = shape
    condition = condition_dtype or dtype
    inputs = [guarded(*shape, seed=1, dtype=dtype), *(guarded(B, C, seed=i, dtype=condition) for i in (2, 3))]
    check_results(
        lambda *given: norm_modulate(*given, norm=norm, backend="triton"),
        lambda *given: reference_norm_modulate(*given, norm=norm, eps=1e-6).to(dtype),
        lambda *given: norm_modulate(*given, norm=norm, backend="reference"),
        inputs,
    )


def test_modulation_without_tokens() -> None:
    x = torch.zeros(2, 0, 40, device=DEVICE, requires_grad=True)
    shift, scale = (torch.ones(2, 40, device=DEVICE, requires_grad=True) for _ in range(2))
    out = norm_modulate(x, shift, scale, backend="triton")
    assert out.shape == (2, 0, 40)
    assert not any(gradient.any() for gradient in torch.autograd.grad(out, (shift, scale), torch.zeros_like(out)))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[0, 5, 1, 0, 9], [150, 70]], ids=str)
def test_grouped_linear(counts: list[int], dtype: torch.dtype, with_bias: bool) -> None:
    A, E, C, F = sum(counts), len(counts), 88, 136  # more and fewer than a tile, ragged
    offsets = torch.tensor([0, *counts], device=DEVICE).cumsum(0)
    shapes = [(A, C), (E, C, F), (E, F)][: 3 if with_bias else 2]
    inputs = [guarded(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def product(backend: str) -> Callable[..., Tensor]:
        return lambda x, w, b=None: grouped_linear(x, w, b, offsets, backend=backend)

    check_results(product("triton"), product(BESIDE), product("reference"), inputs)


@pytest.mark.parametrize("gate_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_add(dtype: torch.dtype, gate_dtype: torch.dtype | None) -> None:
    index = torch.tensor([3, 0, 3, 3, 6, 0, 1], device=DEVICE)  # tokens 2, 4 and 5 get nothing
    inputs = [guarded(7, 40, seed=1, dtype=dtype)]
    if gate_dtype is not None:
        inputs.append(guarded(7, seed=2, dtype=gate_dtype))

    def scatter(backend: str) -> Callable[..., Tensor]:
        return lambda y, gate=None: scatter_add(y, index, gate, 7, backend=backend)

    check_results(scatter("triton"), scatter(BESIDE), scatter("reference"), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(dtype: torch.dtype) -> None:
    index = torch.tensor([4, 4, 0, 2, 4], device=DEVICE)

    def gather(backend: str) -> Callable[..., Tensor]:
        return lambda x: gather_tokens(x, index, backend=backend)

    check_results(gather("triton"), gather(BESIDE), gather("reference"), [guarded(6, 1030, seed=1, dtype=dtype)])


def test_nothing_assigned() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    x = torch.ones(3, 8, device=DEVICE, requires_grad=True)
    weights = torch.ones(2, 8, 4, device=DEVICE, requires_grad=True)
    rows = gather_tokens(x, none, backend="triton")
    rows = grouped_linear(rows, weights, None, torch.zeros(3, dtype=torch.int64, device=DEVICE), backend="triton")
    out = scatter_add(rows, none, torch.zeros(0, device=DEVICE), 3, backend="triton")
    assert out.shape == (3, 4)
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out, (x, weights), torch.ones_like(out)))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_inputs_give_the_same_bits_twice(dtype: torch.dtype) -> None:
    """the same bits twice at 16,384 tokens of 1,152 channels, norm_modulate and a mixture of experts"""
    generator = torch.Generator(DEVICE).manual_seed(1)
    x = torch.randn(16, 1024, 1152, generator=generator, device=DEVICE, dtype=dtype)
    shift, scale = (torch.randn(16, 1152, generator=generator, device=DEVICE, dtype=dtype) for _ in range(2))
    index = torch.randint(4096, (8192,), generator=generator, device=DEVICE)
    weights = torch.randn(8, 1152, 512, generator=generator, device=DEVICE, dtype=dtype)
    offsets = torch.arange(9, device=DEVICE) * 1024

    def mixture(x: Tensor, weights: Tensor) -> Tensor:
        rows = grouped_linear(gather_tokens(x.flatten(0, 1), index), weights, None, offsets)
        return scatter_add(rows, index, None, 4096)

    assert modulation.chosen_backend(x, shift, scale) == expert_dispatch.chosen_backend(x) == "triton"
    for function, inputs in ((norm_modulate, [x, shift, scale]), (mixture, [x, weights])):
        first, second = (results(function, inputs, dtype) for _ in range(2))
        assert all(torch.equal(got, want) for got, want in zip(first, second, strict=True))
