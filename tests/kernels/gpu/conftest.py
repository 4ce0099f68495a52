"""Problems of attention for the tests of its Triton kernels: on a GPU, or on the CPU in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so test_triton_interpreter.py runs files of this folder in
processes of their own with TRITON_INTERPRET=1. Sizes are small there, since it takes tens of milliseconds a pair of
blocks. Guard rows of NaN stand around every input.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels import triton_attention, triton_tuning
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.reference import reference_attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if CUDA else "cpu"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem: random blocks are kept, and with `partial` every second of them is cut through by random pairs."""

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
    partial: bool = False
    with_d_lse: bool = False
    guard: int = 8


@dataclass
class Problem:
    """A case's tensors. pairs: bool [Bx, Hx, N, M], made before the layout and apart from it."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    layout: BlockLayout
    pairs: Tensor
    bias: Tensor | None
    d_lse: Tensor | None

    @property
    def scale(self) -> float:
        """1 / sqrt(head dim)."""
        return self.q.shape[-1] ** -0.5

    def ours(self) -> dict[str, Tensor]:
        """What the kernels make of it, forward and backward."""
        out, lse = triton_attention.forward(self.q, self.k, self.v, self.layout, self.scale, self.bias)
        given = (self.q, self.k, self.v, out, lse, self.layout, self.scale, self.bias)
        dq, dk, dv, d_bias = triton_attention.backward(self.d_out, self.d_lse, *given)
        found = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
        return found | ({} if d_bias is None else {"d_bias": d_bias})

    def explicit(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The reference in a dtype, from inputs whose padding is 0, with gradients by autograd."""
        names = {"dq": self.q, "dk": self.k, "dv": self.v} | ({} if self.bias is None else {"d_bias": self.bias})
        leaves = {name: x.nan_to_num().to(dtype).requires_grad_() for name, x in names.items()}
        q, k, v = leaves["dq"], leaves["dk"], leaves["dv"]
        out, lse = reference_attention(q, k, v, self.pairs, scale=self.scale, key_bias=leaves.get("d_bias"))
        loss = (out * self.d_out.nan_to_num().to(dtype)).sum()
        if self.d_lse is not None:
            seen = lse.isfinite()
            loss = loss + (lse[seen] * self.d_lse[seen].to(lse.dtype)).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"out": out.detach(), "lse": lse.detach()} | dict(zip(leaves, gradients, strict=True))

    def by_torch(self) -> dict[str, Tensor]:
        """torch's own attention in the inputs' dtype, and its gradients; nothing where it cannot give them.

        It too keeps the log-sum-exp and not P, which in fp32 costs more than the explicit reference loses: where lse is
        500, P is off by 500 roundings.
        """
        if self.bias is not None or self.d_lse is not None:
            return {}
        leaves = [x.nan_to_num().requires_grad_() for x in (self.q, self.k, self.v)]
        k, v = (x.repeat_interleave(self.q.shape[1] // x.shape[1], 1) for x in leaves[1:])
        seen = self.pairs.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(leaves[0], k, v, attn_mask=self.pairs | ~seen, scale=self.scale)
        gradients = torch.autograd.grad(out, leaves, self.d_out.nan_to_num() * seen)
        return dict(zip(("out", "dq", "dk", "dv"), (out.detach() * seen, *gradients), strict=True))

    def magnitudes(self) -> dict[str, float]:
        """The largest sum of magnitudes that each result is a sum of, in fp64: what cancels in it counts in full."""
        q, k, v, d_out = (x.nan_to_num().double() for x in (self.q, self.k, self.v, self.d_out))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = q @ k.mT * self.scale + (0 if self.bias is None else self.bias[..., None, :])
        p = scores.masked_fill(~self.pairs, -math.inf).softmax(-1).nan_to_num()
        q, k, v, d_out = (x.abs() for x in (q, k, v, d_out))
        ds = p * (d_out @ v.mT + (d_out * (p @ v)).sum(-1, keepdim=True))
        groups = (self.k.shape[1], -1)
        sums = {
            "out": p @ v,
            "lse": scores * (p > 0),
            "dq": ds @ k * self.scale,
            "dk": (ds.mT @ q * self.scale).unflatten(1, groups).sum(2),
            "dv": (p.mT @ d_out).unflatten(1, groups).sum(2),
            "d_bias": ds.sum(-2),
        }
        return {name: largest(x) for name, x in sums.items()}

    def check(self) -> None:
        """Errors against fp64 at most 2 times (outputs) and 3 times (gradients) those of torch in the same dtype.

        Added, since torch is now and then exact by luck, is one rounding in fp32 of the largest sum of magnitudes: with
        one token dq is 0, the difference of two equal sums.
        """
        found, exact, magnitudes = self.ours(), self.explicit(torch.float64), self.magnitudes()
        references = [self.explicit(self.q.dtype), self.by_torch()]
        assert found.keys() == exact.keys()
        for name, right in exact.items():
            assert found[name].shape == right.shape, name
            reference = max(worst(given[name], right) for given in references if name in given)
            rounding = torch.finfo(torch.float32).eps * magnitudes[name]
            allowed = (2 if name in ("out", "lse") else 3) * reference + rounding
            assert worst(found[name], right) <= allowed, f"{name}: {worst(found[name], right)} > {allowed}"
        seen = exact["lse"].isfinite()
        assert (found["out"][~seen] == 0).all()
        assert (found["dq"][~seen] == 0).all()


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


def guarded(shape: tuple[int, ...], case: Case, amplitude: float, generator: torch.Generator) -> Tensor:
    """Normal values in a window of a larger tensor of NaN: any read outside the window spoils the result."""
    *outer, tokens, channels = shape
    whole = torch.full((*outer, tokens + 2, channels + case.guard), math.nan, dtype=case.dtype, device=DEVICE)
    window = whole[..., 1:-1, :channels]
    window.copy_(torch.randn(shape, generator=generator) * amplitude)
    return window


def make_pairs(case: Case, generator: torch.Generator) -> Tensor:
    """Which pairs of tokens are kept, bool [Bx, Hx, N, M], lengths left out of it."""
    blocks = (-(-case.num_q // case.block_q), -(-case.num_k // case.block_k))
    shape = (case.layout_batch, case.layout_heads, *blocks)
    keep = torch.rand(shape, generator=generator) < case.density
    cut = (torch.rand(shape, generator=generator) < 0.5) & case.partial
    keep, cut = (x.repeat_interleave(case.block_q, 2).repeat_interleave(case.block_k, 3) for x in (keep, cut))
    pairs = keep & ~(cut & (torch.rand(keep.shape, generator=generator) < 0.5))
    if case.partial:
        pairs[..., 3, :] = False  # a query whose lists are full and whose bits are not
    return pairs[..., : case.num_q, : case.num_k]


def make_lengths(case: Case) -> dict[str, Tensor]:
    """q_len and k_len with a block of queries and one of keys that are padding through and through."""
    if not case.lengths:
        return {}
    num_rows, num_cols = -(-case.num_q // case.block_q), -(-case.num_k // case.block_k)
    whole_q = torch.tensor([min(case.block_q, case.num_q - i * case.block_q) for i in range(num_rows)])
    whole_k = torch.tensor([min(case.block_k, case.num_k - i * case.block_k) for i in range(num_cols)])
    q_len, k_len = whole_q - torch.arange(num_rows) % 4, whole_k - 3 * (torch.arange(num_cols) % 3)
    q_len[0], k_len[1] = 0, 0
    return {"q_len": q_len.clamp(min=0).int().to(DEVICE), "k_len": k_len.clamp(min=0).int().to(DEVICE)}


def valid(lengths: Tensor, block: int, tokens: int) -> Tensor:
    """bool [tokens]: which of them are no padding."""
    token = torch.arange(tokens, device=lengths.device)
    return token % block < lengths.long()[token // block]


def make_layout(case: Case, pairs: Tensor, lengths: dict[str, Tensor]) -> BlockLayout:
    """The layout of pairs that may be cut through blocks."""
    sizes = {"block_q": case.block_q, "block_k": case.block_k}
    if case.partial:
        return BlockLayout.from_token_mask(pairs.to(DEVICE), **sizes, **lengths)
    blocks = pairs[..., :: case.block_q, :: case.block_k]
    return BlockLayout.from_dense(blocks.to(DEVICE), **sizes, num_q=case.num_q, num_k=case.num_k, **lengths)


def build(**settings: Any) -> Problem:
    """The problem of a Case with these settings; padded tokens are NaN."""
    case, generator = Case(**settings), torch.Generator().manual_seed(7)
    value_dim = case.value_dim or case.head_dim
    q_shape, k_shape = (case.batch, case.heads, case.num_q), (case.batch, case.kv_heads, case.num_k)
    q = guarded((*q_shape, case.head_dim), case, case.amplitude, generator)
    k = guarded((*k_shape, case.head_dim), case, case.amplitude, generator)
    v = guarded((*k_shape, value_dim), case, 1.0, generator)
    d_out = guarded((*q_shape, value_dim), case, 1.0, generator)
    pairs, lengths = make_pairs(case, generator), make_lengths(case)
    layout = make_layout(case, pairs, lengths)
    pairs = pairs.to(DEVICE)
    bias = d_lse = None
    if case.bias is not None:
        bias = torch.randn((*case.bias, case.num_k), generator=generator).to(DEVICE)
    if case.with_d_lse:
        d_lse = torch.randn(q_shape, generator=generator).to(DEVICE)
    if lengths:
        rows = valid(lengths["q_len"], case.block_q, case.num_q)
        keys = valid(lengths["k_len"], case.block_k, case.num_k)
        pairs = pairs & rows[:, None] & keys
        for x, kept in ((q, rows), (d_out, rows), (k, keys), (v, keys)):
            x[:, :, ~kept] = math.nan
    return Problem(q, k, v, d_out, layout, pairs, bias, d_lse)


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """`build`: make_problem(**settings of a Case)."""
    return build


@pytest.fixture(autouse=True)
def without_autotuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case compiles once; the tests of autotuning switch it on."""
    monkeypatch.setenv(triton_tuning.AUTOTUNE_VARIABLE, "0")


@pytest.fixture(autouse=True)
def where_kernels_run(request: pytest.FixtureRequest) -> None:
    """Skip where neither a GPU nor the interpreter is, and say what that leaves unchecked.

    Tests for a GPU alone say it themselves (see `cuda`).
    """
    if not (CUDA or INTERPRETED or "cuda" in request.fixturenames):
        name = request.path.name
        pytest.skip(f"no CUDA device here, so {name} runs on none; test_triton_interpreter.py runs its small cases")


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> None:
    """For tests too large or too fast for the interpreter; their docstrings say what is left out without a GPU."""
    if not CUDA:
        pytest.skip(f"no CUDA device here, so unchecked: {request.function.__doc__}")
