"""The Triton kernels against an explicit fp64 reference: on a GPU, or on the CPU in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so test_triton_attention.py runs this file once more in a
process of its own with TRITON_INTERPRET=1. Sizes are small, since the interpreter takes tens of milliseconds a pair of
blocks; what needs a GPU's size or speed is skipped there. Guard rows of NaN stand around every input.
"""

import math
import os
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import triton_attention, triton_configs
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.reference import reference_attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"
NO_GPU = "no CUDA device here; test_triton_attention.py runs the small cases in Triton's interpreter"

pytestmark = pytest.mark.skipif(not (CUDA or INTERPRETED), reason=NO_GPU)
gpu_only = pytest.mark.skipif(not CUDA, reason="needs a CUDA device: too large or too fast for the interpreter")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem; the layout is random unless `keep` says all or none."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    num_q: int = 40
    num_k: int = 56
    head_dim: int = 32
    value_dim: int | None = None
    block_q: int = 16
    block_k: int = 16
    dtype: torch.dtype = torch.float32
    amplitude: float = 1.0
    density: float = 0.6
    layout_batch: int = 1
    layout_heads: int = 1
    bias: tuple[int, int] | None = None
    lengths: bool = False
    with_d_lse: bool = False
    guard: int = 8


def guarded(shape: tuple[int, ...], case: Case, generator: torch.Generator) -> Tensor:
    """Normal values in a window of a larger tensor of NaN: any read outside the window spoils the result."""
    *outer, tokens, channels = shape
    whole = torch.full((*outer, tokens + 2, channels + case.guard), math.nan, dtype=case.dtype, device=DEVICE)
    window = whole[..., 1:-1, :channels]
    window.copy_(torch.randn(shape, generator=generator) * case.amplitude)
    return window


def make_layout(case: Case, generator: torch.Generator) -> BlockLayout:
    num_rows, num_cols = -(-case.num_q // case.block_q), -(-case.num_k // case.block_k)
    shape = (case.layout_batch, case.layout_heads, num_rows, num_cols)
    mask = torch.rand(shape, generator=generator) < case.density
    lengths = {}
    if case.lengths:
        whole_q = torch.tensor([min(case.block_q, case.num_q - i * case.block_q) for i in range(num_rows)])
        whole_k = torch.tensor([min(case.block_k, case.num_k - i * case.block_k) for i in range(num_cols)])
        q_len, k_len = whole_q - torch.arange(num_rows) % 4, whole_k - 3 * (torch.arange(num_cols) % 3)
        q_len[0], k_len[1] = 0, 0  # blocks that are padding through and through
        lengths = {"q_len": q_len.clamp(min=0).int().to(DEVICE), "k_len": k_len.clamp(min=0).int().to(DEVICE)}
    sizes = {"block_q": case.block_q, "block_k": case.block_k, "num_q": case.num_q, "num_k": case.num_k}
    return BlockLayout.from_dense(mask.to(DEVICE), **sizes, **lengths)


def spoil_padding(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> None:
    """NaN at the tokens that q_len and k_len leave out."""
    for lengths, block, tensors in ((layout.q_len, layout.block_q, (q, d_out)), (layout.k_len, layout.block_k, (k, v))):
        if lengths is not None:
            for x in tensors:
                token = torch.arange(x.shape[2], device=DEVICE)
                x[:, :, token % block >= lengths.long()[token // block]] = math.nan


@dataclass
class Problem:
    """A case's tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    layout: BlockLayout
    bias: Tensor | None
    d_lse: Tensor | None

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    def ours(self) -> dict[str, Tensor]:
        out, lse = triton_attention.forward(self.q, self.k, self.v, self.layout, self.scale, self.bias)
        given = (self.q, self.k, self.v, out, lse, self.layout, self.scale, self.bias)
        dq, dk, dv, d_bias = triton_attention.backward(self.d_out, self.d_lse, *given)
        found = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
        return found | ({} if d_bias is None else {"d_bias": d_bias})

    def explicit(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The reference in a dtype, from inputs whose padding is 0, with gradients by autograd."""
        names = {"dq": self.q, "dk": self.k, "dv": self.v} | ({} if self.bias is None else {"d_bias": self.bias})
        leaves = {name: x.nan_to_num().to(dtype).requires_grad_() for name, x in names.items()}
        mask = self.layout.token_mask()
        bias = leaves.get("d_bias")
        q, k, v = leaves["dq"], leaves["dk"], leaves["dv"]
        out, lse = reference_attention(q, k, v, mask, scale=self.scale, key_bias=bias)
        loss = (out * self.d_out.nan_to_num().to(dtype)).sum()
        if self.d_lse is not None:
            seen = lse.isfinite()
            loss = loss + (lse[seen] * self.d_lse[seen].to(lse.dtype)).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"out": out.detach(), "lse": lse.detach()} | dict(zip(leaves, gradients, strict=True))


def make_problem(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(7)
    value_dim = case.value_dim or case.head_dim
    q = guarded((case.batch, case.heads, case.num_q, case.head_dim), case, generator)
    k = guarded((case.batch, case.kv_heads, case.num_k, case.head_dim), case, generator)
    v = guarded((case.batch, case.kv_heads, case.num_k, value_dim), replace(case, amplitude=1.0), generator)
    d_out = guarded((case.batch, case.heads, case.num_q, value_dim), replace(case, amplitude=1.0), generator)
    layout = make_layout(case, generator)
    bias = d_lse = None
    if case.bias is not None:
        bias = torch.randn((*case.bias, case.num_k), generator=generator).to(DEVICE)
    if case.with_d_lse:
        d_lse = torch.randn(q.shape[:3], generator=generator).to(DEVICE)
    spoil_padding(layout, q, k, v, d_out)
    return Problem(q, k, v, d_out, layout, bias, d_lse)


def worst(found: Tensor, exact: Tensor) -> float:
    """Largest difference; infinities must stand in the same places, and there must be no NaN."""
    found = found.double()
    assert not found.isnan().any()
    apart = exact.isinf()
    assert torch.equal(found[apart], exact[apart])
    return (found - exact)[~apart].abs().max().item() if (~apart).any() else 0.0


def largest(x: Tensor) -> float:
    """Largest finite magnitude; 0 where there is none."""
    finite = x[x.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def assert_as_good_as_torch(problem: Problem, dtype: torch.dtype) -> None:
    """Errors against fp64 at most 2 times (outputs) and 3 times (gradients) those of the reference in the same dtype.

    One unit in the last place of the largest value is always allowed, and four of fp32 at the largest of all: torch is
    now and then exact by luck (with one key dq is 0, the difference of two sums).
    """
    found, exact, plain = problem.ours(), problem.explicit(torch.float64), problem.explicit(dtype)
    assert found.keys() == exact.keys()
    rest = 4 * torch.finfo(torch.float32).eps * max(largest(x) for x in exact.values())
    for name, right in exact.items():
        assert found[name].shape == right.shape, name
        ulp = torch.finfo(torch.float32 if name == "lse" else dtype).eps
        factor = 2 if name in ("out", "lse") else 3
        allowed = factor * worst(plain[name], right) + ulp * largest(right) + rest
        assert worst(found[name], right) <= allowed, f"{name}: {worst(found[name], right)} > {allowed}"
    seen = exact["lse"].isfinite()
    assert (found["out"][~seen] == 0).all()
    assert (found["dq"][~seen] == 0).all()


@pytest.fixture(autouse=True)
def without_autotuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case compiles once; the tests of autotuning switch it on."""
    monkeypatch.setenv(triton_attention.AUTOTUNE_VARIABLE, "0")


CASES = {
    "ragged on both sides": Case(),
    "fp16": Case(dtype=torch.float16),
    "bf16": Case(dtype=torch.bfloat16),
    "one token each": Case(num_q=1, num_k=1, density=1.0),
    "one query": Case(num_q=1, num_k=40, density=1.0),
    "one key": Case(num_q=40, num_k=1, density=1.0),
    "nothing kept": Case(density=0.0),
    "everything kept": Case(density=1.0),
    "whole blocks": Case(num_q=32, num_k=48),
    "batch": Case(batch=2, num_q=32, num_k=32),
    "a layout for each batch and head": Case(batch=2, heads=4, kv_heads=2, layout_batch=2, layout_heads=4, density=0.4),
    "a layout for each head": Case(heads=2, kv_heads=2, layout_heads=2, density=0.4),
    "blocks that differ": Case(block_q=32, block_k=16, num_q=50),
    "blocks that differ the other way": Case(block_q=16, block_k=32, num_k=70),
    "head groups of 1": Case(heads=2, kv_heads=2, num_q=24, num_k=24),
    "head groups of 4": Case(heads=4, kv_heads=1, num_q=24, num_k=24),
    "head groups of 8": Case(heads=8, kv_heads=1, num_q=24, num_k=24, layout_heads=8),
    "scale 4": Case(amplitude=4.0),
    "scale 16": Case(amplitude=16.0),
    "scale 16 in bf16": Case(amplitude=16.0, dtype=torch.bfloat16),
    "gradient through lse": Case(with_d_lse=True),
    "bias for all": Case(bias=(1, 1), batch=2, num_q=24),
    "bias for each head": Case(bias=(1, 2), with_d_lse=True),
    "bias for each batch": Case(bias=(2, 1), batch=2, num_q=24, heads=2, kv_heads=2),
    "padding of NaN": Case(lengths=True, density=0.8),
    "padding of NaN, all features": Case(
        lengths=True, density=0.8, bias=(1, 2), with_d_lse=True, dtype=torch.bfloat16, head_dim=40, value_dim=24
    ),
    "padding at scale 16": Case(lengths=True, density=0.8, amplitude=16.0),
    "values wider than keys": Case(head_dim=40, value_dim=72, num_q=24, num_k=24),
    "values narrower than keys": Case(head_dim=72, value_dim=8, num_q=24, num_k=24),
    "strides that are not whole vectors": Case(head_dim=40, guard=3, num_q=24),
} | {
    f"head dim {width}": Case(head_dim=width, num_q=24, num_k=24, density=1.0, dtype=torch.bfloat16)
    for width in (8, 40, 64, 72, 80, 96, 128)
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_as_good_as_torchs(name: str) -> None:
    assert_as_good_as_torch(make_problem(CASES[name]), CASES[name].dtype)


def test_a_head_and_a_column_without_any_pair() -> None:
    problem = make_problem(Case(heads=2, kv_heads=2))
    mask = torch.ones(1, 2, 3, 4, dtype=torch.bool)
    mask[:, 1] = False
    mask[:, 0, :, 2] = False
    problem.layout = BlockLayout.from_dense(mask.to(DEVICE), block_q=16, block_k=16, num_q=40, num_k=56)
    assert_as_good_as_torch(problem, torch.float32)
    found = problem.ours()
    assert (found["lse"][:, 1] == -math.inf).all()
    assert (found["dk"][:, 1] == 0).all()
    assert (found["dv"][:, 0, 32:48] == 0).all()


def test_keys_that_a_bias_rules_out() -> None:
    problem = make_problem(Case(bias=(1, 1), density=1.0))
    assert problem.bias is not None
    problem.bias[..., ::3] = -math.inf
    found = problem.ours()
    kept = torch.ones(56, dtype=torch.bool, device=DEVICE)
    kept[::3] = False
    q, k, v = (x.double() for x in (problem.q, problem.k, problem.v))
    bias = problem.bias[..., kept].double()
    right, lse = reference_attention(q, k[:, :, kept], v[:, :, kept], None, scale=problem.scale, key_bias=bias)
    torch.testing.assert_close(found["out"].double(), right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["lse"].double(), lse, rtol=1e-5, atol=1e-5)
    assert (found["dk"][:, :, ~kept] == 0).all()
    assert (found["d_bias"][..., ~kept] == 0).all()


def test_tokens_outermost_in_memory() -> None:
    """Views of [B, N, 3, H, D], as a fused projection gives them."""
    problem = make_problem(Case(heads=2, kv_heads=2, num_q=40, num_k=40, head_dim=72))
    packed = torch.stack([problem.q, problem.k, problem.v]).permute(1, 3, 0, 2, 4).contiguous()
    problem.q, problem.k, problem.v = packed.permute(2, 0, 3, 1, 4)
    assert problem.q.stride(2) == 3 * 2 * 72
    assert_as_good_as_torch(problem, torch.float32)


def test_tiles_that_subdivide_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(block_q=32, block_k=64, num_q=70, num_k=90, density=0.7, lengths=True, heads=1)
    small = triton_configs.TileConfig(16, 16, 1, 1)
    monkeypatch.setattr(triton_configs, "table_config", lambda *_: small)
    assert_as_good_as_torch(make_problem(case), torch.float32)


def test_the_same_input_gives_the_same_bits_in_any_order_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(Case(heads=4, kv_heads=2, bias=(1, 1), with_d_lse=True))
    first = problem.ours()
    if INTERPRETED:
        from triton.runtime import interpreter

        builder = interpreter.interpreter_builder
        place = builder.set_grid_idx
        monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(builder.grid_dim[0] - 1 - x, y, z))
    second = problem.ours()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_sizes_of_zero() -> None:
    problem = make_problem(Case(num_q=16, num_k=16))
    q, d_out = problem.q[:, :, :0], problem.d_out[:, :, :0]
    sizes = {"block_q": 16, "block_k": 16, "num_q": 16, "num_k": 16}
    layout = BlockLayout.full(**sizes, device=DEVICE)
    out, lse = triton_attention.forward(problem.q[:0], problem.k[:0], problem.v[:0], layout, 1.0, None)
    assert out.shape == (0, 2, 16, 32)
    assert lse.shape == (0, 2, 16)
    with pytest.raises(ValueError, match="expected 0 x 16 tokens"):
        triton_attention.forward(q, problem.k, problem.v, layout, 1.0, None)
    with pytest.raises(ValueError, match="d_out is"):
        triton_attention.backward(d_out, None, problem.q, problem.k, problem.v, problem.q, lse, layout, 1.0, None)


@gpu_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [64, 72, 128])
@pytest.mark.parametrize("block", [64, 128])
def test_real_sizes(dtype: torch.dtype, width: int, block: int) -> None:
    case = Case(
        batch=2, heads=4, kv_heads=2, num_q=1000, num_k=1224, head_dim=width, block_q=block, block_k=block,
        dtype=dtype, layout_batch=2, layout_heads=4, bias=(1, 4), with_d_lse=True, lengths=True,
    )  # fmt: skip
    assert_as_good_as_torch(make_problem(case), dtype)


@gpu_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dense_layouts_agree_with_torchs_attention(dtype: torch.dtype) -> None:
    case = Case(heads=8, kv_heads=8, num_q=1024, num_k=1024, head_dim=72, block_q=64, block_k=64, dtype=dtype)
    problem = make_problem(replace(case, density=1.0))
    leaves = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    wanted = [out, *torch.autograd.grad(out, leaves, problem.d_out)]
    found, exact = problem.ours(), problem.explicit(torch.float64)
    for name, theirs in zip(("out", "dq", "dk", "dv"), wanted, strict=True):
        factor = 2 if name == "out" else 3
        assert worst(found[name], exact[name]) <= factor * worst(theirs, exact[name]), name


@gpu_only
@pytest.mark.parametrize("pass_name", triton_configs.PASSES)
def test_every_candidate_of_autotuning_is_right(pass_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(heads=2, kv_heads=1, num_q=500, num_k=600, head_dim=72, block_q=128, block_k=128, dtype=torch.bfloat16)
    problem, chosen = make_problem(case), triton_configs.table_config
    arch = triton_configs.table_arch(torch.cuda.get_device_capability())
    shape = triton_configs.KernelShape(head_dim=72, value_dim=72, block_q=128, block_k=128)
    refused: dict[triton_configs.TileConfig, str] = {}
    for one in triton_configs.candidates(pass_name, arch, 2, shape):
        pick = partial(lambda one, name, *rest: one if name == pass_name else chosen(name, *rest), one)
        monkeypatch.setattr(triton_configs, "table_config", pick)
        try:
            assert_as_good_as_torch(problem, torch.bfloat16)
        except ValueError as error:  # a candidate may be too large for this device; the table's entry may not
            refused[one] = str(error)
    assert chosen(pass_name, arch, 2, shape) not in refused
    assert all("fit the device" in text for text in refused.values())


@gpu_only
def test_autotuning_keeps_one_choice_for_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(triton_attention.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(triton_attention, "_FASTEST", {})
    case = Case(heads=4, num_q=512, num_k=512, head_dim=64, block_q=64, block_k=64, dtype=torch.bfloat16)
    assert_as_good_as_torch(make_problem(case), torch.bfloat16)
    assert {key[0] for key in triton_attention._FASTEST} == set(triton_configs.PASSES)
