"""norm_modulate against an explicit fp64 computation, on every backend and instruction set that runs on a CPU."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import modulation, modulation_cpu, native_call
from mezzotint.kernels.modulation import chosen_backend, last_backend, norm_modulate
from mezzotint.kernels.modulation_reference import reference_norm_modulate
from mezzotint.kernels.native_build import why_not_native

WHY_NOT = why_not_native()
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=f"no C library: {WHY_NOT}")
OPERATIONS = ("reference", pytest.param("cpu", marks=needs_compiler))
BACKENDS = ("torch", *OPERATIONS)
NORMS = ("layer", "rms")
# Channels: fewer than a vector, ragged after one and after several, and whole vectors; tokens: one, fewer than a chunk,
# ragged after one and after two chunks.
SHAPES = ((1, 1, 3), (2, 5, 7), (3, 70, 40), (1, 64, 88), (2, 130, 320))
DTYPES = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32))

Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], offset: float = 0.0) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape))
    B, _, C = shape
    x = (torch.randn(shape, generator=generator) * 2 + offset).to(dtypes[0])
    shift, scale = (torch.randn(B, C, generator=generator).to(dtypes[1]) for _ in range(2))
    return x, shift, scale


def exact(x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float) -> Tensor:
    """The definition, for fp64."""
    centred = x - x.mean(2, keepdim=True) if norm == "layer" else x
    return centred / (centred.pow(2).mean(2, keepdim=True) + eps).sqrt() * (1 + scale[:, None]) + shift[:, None]


def results(function: Callable[..., Tensor], inputs: Inputs, d_out: Tensor) -> list[Tensor]:
    """The output, and the gradients of x, shift and scale."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out.to(out.dtype))]


def check_results(ours: Callable[..., Tensor], inputs: Inputs, norm: str, eps: float = 1e-6) -> None:
    """Errors against fp64 are at most 2 (output) and 3 (gradients) times those of torch's operators in the same dtype,
    or of rounding the right answer to it."""
    generator = torch.Generator().manual_seed(1)
    d_out = torch.randn(inputs[0].shape, generator=generator).to(inputs[0].dtype)
    wide: Inputs = (inputs[0].double(), inputs[1].double(), inputs[2].double())
    right = results(lambda *given: exact(*given, norm, eps), wide, d_out.double())
    theirs = results(lambda *given: reference_norm_modulate(*given, norm=norm, eps=eps), inputs, d_out)
    found = results(ours, inputs, d_out)
    for name, factor, got, other, want, given in zip(
        ("out", "dx", "d_shift", "d_scale"), (2, 3, 3, 3), found, theirs, right, (inputs[0], *inputs), strict=True
    ):
        assert got.dtype == given.dtype, name
        error, allowed = (got - want).abs().max(), (other - want).abs().max()
        rounding = torch.finfo(given.dtype).eps / 2 * want.abs().max()
        assert error <= factor * max(allowed, rounding), f"{name} is {error} off; torch {allowed}, rounding {rounding}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_as_exact_as_torchs(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype], norm: str, backend: str
) -> None:
    inputs = make_inputs(shape, dtypes)
    check_results(lambda *given: norm_modulate(*given, norm=norm, backend=backend), inputs, norm)
    assert last_backend() == backend


@needs_compiler
@pytest.mark.parametrize("level", range(len(native_call.LEVELS)), ids=native_call.LEVELS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_every_instruction_set_of_this_machine_is_right(
    dtypes: tuple[torch.dtype, torch.dtype], norm: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level > native_call.LEVELS.index(native_call.instruction_set()):
        pytest.skip(f"this machine has no {native_call.LEVELS[level]}")
    monkeypatch.setattr(native_call, "_forced_level", level)
    for shape in SHAPES:
        inputs = make_inputs(shape, dtypes)
        check_results(lambda *given: norm_modulate(*given, norm=norm, backend="cpu"), inputs, norm)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_mean_far_from_zero_does_not_cancel(norm: str, backend: str) -> None:
    inputs = make_inputs((2, 9, 72), (torch.float32, torch.float32), offset=1000.0)
    check_results(lambda *given: norm_modulate(*given, norm=norm, backend=backend), inputs, norm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_counts(backend: str) -> None:
    x, shift, scale = make_inputs((2, 9, 72), (torch.float32, torch.float32))
    inputs = (x * 0.01, shift, scale)
    check_results(lambda *given: norm_modulate(*given, eps=0.1, backend=backend), inputs, "layer", eps=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_larger_tensors_are_read_in_place(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(3, 6, 40, generator=generator)
    x = torch.full((3, 12, 80), math.nan)[:, 1:11, 8:48]
    x.copy_(torch.randn(x.shape, generator=generator))
    shift, scale = table.unbind(1)[:2]
    given, copied = (x, shift, scale), (x.contiguous(), shift.contiguous(), scale.contiguous())
    assert torch.equal(norm_modulate(*given, backend=backend), norm_modulate(*copied, backend=backend))
    one = table[:1, 0].expand(3, 40)
    repeated = norm_modulate(x, one.contiguous(), one.contiguous(), backend=backend)
    assert torch.equal(norm_modulate(x, one, one, backend=backend), repeated)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_any_strides_are_taken(backend: str) -> None:
    inputs = make_inputs((2, 5, 24), (torch.float32, torch.float32))
    d_out = torch.randn(24, 5, 2, generator=torch.Generator().manual_seed(3)).permute(2, 1, 0)

    def run(gradient: Tensor) -> list[Tensor]:
        return results(lambda *given: norm_modulate(*given, backend=backend), inputs, gradient)

    for strided in (d_out, d_out[:1, :1, :1].expand(2, 5, 24), d_out[:, :1].expand(2, 5, 24)):
        for got, want in zip(run(strided), run(strided.contiguous()), strict=True):
            torch.testing.assert_close(got, want)


@needs_compiler
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    inputs = make_inputs((2, 300, 320), (torch.bfloat16, torch.float32))
    d_out = torch.randn(2, 300, 320, generator=torch.Generator().manual_seed(4))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(lambda *given: norm_modulate(*given, backend="cpu"), inputs, d_out))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, found[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_token(backend: str) -> None:
    x, shift, scale = make_inputs((2, 6, 40), (torch.bfloat16, torch.bfloat16))
    x[1, 2, 39] = math.nan
    x.requires_grad_()
    out = norm_modulate(x, shift, scale, backend=backend)
    (dx,) = torch.autograd.grad(out, x, torch.ones_like(out))
    spoiled = torch.zeros(2, 6, dtype=torch.bool)
    spoiled[1, 2] = True
    for tensor in (out, dx):
        assert tensor.isnan().all(2).equal(spoiled)
        assert tensor.isnan().any(2).equal(spoiled)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_token_of_zeros_gives_the_shift(norm: str, backend: str) -> None:
    _, shift, scale = make_inputs((2, 3, 40), (torch.float32, torch.float32))
    out = norm_modulate(torch.zeros(2, 3, 40), shift, scale, norm=norm, backend=backend)
    assert torch.equal(out, shift[:, None].expand(2, 3, 40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel_is_its_own_mean(backend: str) -> None:
    inputs = make_inputs((2, 3, 1), (torch.float32, torch.float32))
    out, dx, _, d_scale = results(lambda *given: norm_modulate(*given, backend=backend), inputs, torch.ones(2, 3, 1))
    assert torch.equal(out, inputs[1][:, None].expand(2, 3, 1))
    assert dx.abs().max() < 1e-3  # g - g, which eps multiplies by 1000
    assert not d_scale.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_give_no_output_and_zero_gradients(backend: str) -> None:
    for shape in ((2, 0, 40), (0, 3, 40)):
        inputs = make_inputs(shape, (torch.float32, torch.float32))
        out, dx, d_shift, d_scale = results(
            lambda *given: norm_modulate(*given, backend=backend), inputs, torch.zeros(shape)
        )
        assert out.shape == dx.shape == shape
        assert d_shift.shape == d_scale.shape == (shape[0], 40)
        assert not d_shift.any()
        assert not d_scale.any()


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_the_reference_pass_gradcheck_in_fp64(norm: str) -> None:
    wide = [tensor.double().requires_grad_() for tensor in make_inputs((2, 3, 6), (torch.float32, torch.float32))]
    assert torch.autograd.gradcheck(lambda *given: norm_modulate(*given, norm=norm, backend="reference"), wide)


@pytest.mark.parametrize("backend", OPERATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_torch_accepts_the_registrations(norm: str, backend: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs((2, 5, 24), (torch.bfloat16, torch.float32))]
    torch.library.opcheck(torch.ops.mezzotint.norm_modulate.default, (*inputs, norm, 1e-6, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs = make_inputs((2, 5, 24), (torch.float32, torch.float32))
    d_out = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(5))

    def eager(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return norm_modulate(x * 2, shift, scale, backend=backend) + 1

    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for got, want in zip(results(compiled, inputs, d_out), results(eager, inputs, d_out), strict=True):
        assert torch.equal(got, want)


def test_the_backend_is_known_before_and_after() -> None:
    x, shift, scale = make_inputs((1, 2, 8), (torch.float32, torch.float32))
    assert chosen_backend(x, shift, scale, backend="reference") == "reference"
    assert chosen_backend(x.double(), shift, scale) == "torch"
    assert chosen_backend(x.transpose(1, 2), shift, scale) == "torch"
    norm_modulate(x.double(), shift, scale)
    assert last_backend() == "torch"
    if WHY_NOT is None:
        assert chosen_backend(x, shift, scale) == "cpu"
        norm_modulate(x, shift, scale)
        assert last_backend() == "cpu"


def test_without_a_compiler_auto_takes_torchs_operators_and_cpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modulation_cpu, "why_not_native", lambda: "no C compiler is found")
    inputs = make_inputs((1, 2, 8), (torch.float32, torch.float32))
    assert chosen_backend(*inputs) == "torch"
    with pytest.raises(ValueError, match="backend is 'cpu'; it cannot run here, since no C compiler is found"):
        norm_modulate(*inputs, backend="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'; expected one of auto, torch, reference, cpu, triton"),
        ({"backend": "triton"}, "backend is 'triton'; it cannot run here"),
        ({"backend": "cpu", "x": torch.zeros(2, 3, 8).double()}, "C kernel takes bf16 and fp32"),
        ({"backend": "cpu", "x": torch.zeros(2, 8, 3).transpose(1, 2)}, "x has stride 3 in its last dimension"),
        ({"x": torch.zeros(3, 8)}, r"x is of shape \[3, 8\]; expected \[batch, tokens, channels\]"),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int64)}, "x is of torch.int64; expected a floating-point dtype"),
        ({"x": [1.0]}, "x is 'list'; expected a tensor"),
        ({"x": torch.zeros(2, 3, 0)}, r"x is of shape \[2, 3, 0\]; expected at least one channel"),
        ({"shift": torch.zeros(1, 8)}, r"shift is of shape \[1, 8\]; expected shape \[2, 8\]"),
        ({"scale": torch.zeros(2, 8).half()}, "shift is of torch.float32; expected torch.float16, as scale is"),
        ({"scale": torch.zeros(2, 8, device="meta")}, "scale is on meta; expected cpu"),
        ({"norm": "batch"}, "norm is 'batch'; expected 'layer' or 'rms'"),
        ({"eps": 0.0}, "eps is 0.0; expected a finite number above 0"),
        ({"eps": math.nan}, "eps is nan; expected a finite number above 0"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"x": torch.zeros(2, 3, 8), "shift": torch.zeros(2, 8), "scale": torch.zeros(2, 8)}
    with pytest.raises(ValueError, match=message):
        modulation.norm_modulate(**(given | changes))  # type: ignore[arg-type]
