"""Attention against an explicit fp64 reference."""

import pytest
import torch

from mezzotint.dit.attention import attend


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhnm,bhmd->bhnd", scores.exp() / scores.exp().sum(-1, keepdim=True), v.double())


@pytest.mark.parametrize("tokens", [1, 76, 513])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_short_and_long_sequences_agree_with_fp64(
    tokens: int, dtype: torch.dtype, bound: float, scale: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens, 32) for _ in range(3))
    q, k, v = (q * scale).to(dtype), k.to(dtype), v.to(dtype)
    out = attend(q, k, v)
    expected = reference(q, k, v)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() / expected.norm() < bound


def test_a_mask_hides_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 5, 16), torch.randn(2, 2, 4, 16), torch.randn(2, 2, 4, 16)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])[:, None, None]
    expected = reference(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask).double(), expected, atol=1e-5, rtol=1e-5)
    hidden = k.clone()
    hidden[0, :, 2:] = 1e4
    torch.testing.assert_close(attend(q, hidden, v, mask), attend(q, k, v, mask))
