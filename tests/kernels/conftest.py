"""What the tests of CPU attention share: its backends, inputs, and the references that bound its errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import cpu_attention, cpu_torch_attention, native_call
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.native_build import why_not_native
from mezzotint.kernels.reference import reference_attention

Arguments = tuple[Tensor, Tensor, Tensor, BlockLayout, float, Tensor | None]
Results = list[Tensor]
NAMES = ("out", "lse", "dq", "dk", "dv", "d_bias")


@dataclass(frozen=True)
class Attention:
    """A backend's two functions, and what they are held against."""

    module: ModuleType

    @staticmethod
    def tensors(shape: tuple[int, ...], dtype: torch.dtype, amplitude: float = 1.0) -> tuple[Tensor, ...]:
        """q, k, v, and gradients of the output and of lse, for a shape (B, H, G, N, M, D, V, ...)."""
        B, H, G, N, M, D, V = shape[:7]
        sizes = ((B, H, N, D), (B, G, M, D), (B, G, M, V), (B, H, N, V))
        q, k, v, d_out = (torch.randn(size).to(dtype) for size in sizes)
        return q * amplitude, k * amplitude, v, d_out, torch.randn(B, H, N)

    def run(self, arguments: Arguments, d_out: Tensor, d_lse: Tensor | None) -> Results:
        """Output, lse and the gradients of q, k, v and, where there is one, of key_bias."""
        q, k, v, layout, scale, key_bias = arguments
        out, lse = self.module.forward(*arguments)
        gradients = self.module.backward(d_out, d_lse, q, k, v, out, lse, layout, scale, key_bias)
        return [x for x in (out, lse, *gradients) if x is not None]

    def check(
        self, arguments: Arguments, d_out: Tensor, d_lse: Tensor | None, *, with_autograd: bool = False
    ) -> Results:
        """Errors against fp64 are at most 2 (outputs) and 3 times (gradients) those of a reference in q's dtype, give
        or take one rounding of the largest value.

        The reference is autograd through the explicit attention in 16 bits, and in fp32 the attention written out with
        a backward from the lse that is stored, which is in fp32 as ours is; autograd besides, where asked for: it
        never rounds the lse, so it is nearly exact where there is next to nothing to add up.
        """
        dtype = arguments[0].dtype
        ours = self.run(arguments, d_out, d_lse)
        exact = by_autograd(arguments, d_out, d_lse, torch.float64)
        references = [from_stored_lse(arguments, d_out, d_lse)] if dtype == torch.float32 else []
        if with_autograd or dtype != torch.float32:
            references.append(by_autograd(arguments, d_out, d_lse, dtype))
        for name, mine, true, *others in zip(NAMES, ours, exact, *references, strict=False):
            assert mine.shape == true.shape, name
            assert torch.equal(mine == -torch.inf, true == -torch.inf), name
            errors = [(x.double() - true).masked_fill(true == -torch.inf, 0).abs().max() for x in (mine, *others)]
            rounding = torch.finfo(dtype).eps * scale_of(name, true, d_out)
            for reference in errors[1:]:
                assert errors[0] <= (2 if name in ("out", "lse") else 3) * reference + rounding, name
        return ours


def scale_of(name: str, true: Tensor, d_out: Tensor) -> Tensor:
    """The size of which one rounding is allowed: the largest value.

    A logarithm's is at least 1 in fp32 (a rounding of the sum moves it by eps), and that of a gradient that is zero,
    since two sums of the size of d_out.v cancel, is theirs.
    """
    size = true.masked_fill(true == -torch.inf, 0).abs().max()
    if d_out.dtype != torch.float32:
        return size.clamp(min=0.01)
    if name == "lse":
        return size.clamp(min=1)
    return size if size > 0 else d_out.norm(dim=-1).max()


def by_autograd(arguments: Arguments, d_out: Tensor, d_lse: Tensor | None, dtype: torch.dtype) -> Results:
    """The reference and its gradients, computed in `dtype`."""
    *tensors, layout, scale, key_bias = arguments
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors)
    bias = None if key_bias is None else key_bias.detach().to(dtype).requires_grad_()
    out, lse = reference_attention(q, k, v, layout.token_mask(), scale=scale, key_bias=bias)
    leaves = [x for x in (q, k, v, bias) if x is not None]
    total = (out * d_out.to(dtype)).sum()
    if d_lse is not None:
        total = total + (lse * d_lse.to(dtype)).masked_fill(lse == -torch.inf, 0).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(total, leaves)]


def from_stored_lse(arguments: Arguments, d_out: Tensor, d_lse: Tensor | None) -> Results:
    """Attention and its backward written out in the inputs' dtype (FlashAttention-2, arXiv 2307.08691, section 2.1).

    The backward has P from exp(scores - lse), and every sum is taken in order: as a kernel does it.
    """
    q, k, v, layout, scale, key_bias = arguments
    heads_of_key = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(heads_of_key, 1) for x in (k, v))
    scores = product_in_order(q, k) * scale
    scores = scores if key_bias is None else scores + key_bias[:, :, None]
    scores = scores.masked_fill(~layout.token_mask(), -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    top = scores.amax(-1, keepdim=True).masked_fill(empty, 0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    lse = (top + total.log()).masked_fill(empty, -torch.inf)
    out = product_in_order(weights, v.mT) / total.masked_fill(empty, 1)
    p = (scores - lse.masked_fill(empty, torch.inf)).exp()
    delta = (d_out * out).sum(-1, keepdim=True) - (0 if d_lse is None else d_lse[..., None])
    ds = p * (product_in_order(d_out, v) - delta)
    dk, dv = product_in_order(ds.mT, q.mT) * scale, product_in_order(p.mT, d_out.mT)
    by_key_head = [x.unflatten(1, (-1, heads_of_key)).sum(2) for x in (dk, dv)]
    d_bias = [] if key_bias is None else [ds.sum(-2).sum_to_size(key_bias.shape)]
    return [out, lse[..., 0], product_in_order(ds, k.mT) * scale, *by_key_head, *d_bias]


def product_in_order(a: Tensor, b: Tensor) -> Tensor:
    """a [..., N, C] and b [..., M, C] -> a b^T, each sum over C from the first term to the last.

    torch's own product is this as well, bit by bit, but for small sizes, where it adds up partial sums and its error is
    half of it.
    """
    total = a.new_zeros(*a.shape[:-1], b.shape[-2])
    for c in range(a.shape[-1]):
        total = torch.addcmul(total, a[..., c, None], b[..., None, :, c])
    return total


def use_level(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the C kernels run at an instruction set, or skip the test where the machine has no such."""
    if reason := why_not_native():
        pytest.skip(f"the C kernels cannot be built here: {reason}")
    level = native_call.LEVELS.index(name)
    if level > native_call.LEVELS.index(native_call.instruction_set()):
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setattr(native_call, "_forced_level", level)


@pytest.fixture(params=[*native_call.LEVELS, "torch"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """A backend under test; the C kernels once for each instruction set that this machine has."""
    if request.param == "torch":
        return Attention(cpu_torch_attention)
    use_level(request.param, monkeypatch)
    return Attention(cpu_attention)


@pytest.fixture
def native_attention(monkeypatch: pytest.MonkeyPatch) -> Attention:
    """The C kernels at the best instruction set of this machine."""
    if reason := why_not_native():
        pytest.skip(f"the C kernels cannot be built here: {reason}")
    use_level(native_call.instruction_set(), monkeypatch)
    return Attention(cpu_attention)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
