"""The reference against torch's SDPA, against copies of keys, and at rows without any key."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels.reference import reference_attention


def inputs(heads: int = 4, groups: int = 4, *, queries: int = 7, keys: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, 6), (2, groups, keys, 6), (2, groups, keys, 5)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def some_mask(queries: int = 7, keys: int = 9) -> Tensor:
    mask = torch.rand(2, 4, queries, keys, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_and_gradients_are_those_of_sdpa_under_the_same_mask(groups: int) -> None:
    leaves = inputs(groups=groups)
    out, _ = reference_attention(*leaves, some_mask())
    wanted = F.scaled_dot_product_attention(*leaves, attn_mask=some_mask(), enable_gqa=True)
    torch.testing.assert_close(out, wanted)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = torch.autograd.grad(out, leaves, upstream)
    for got, want in zip(ours, torch.autograd.grad(wanted, leaves, upstream), strict=True):
        torch.testing.assert_close(got, want)


def test_lse_is_the_log_of_the_softmax_sum() -> None:
    q, k, v = inputs()
    _, lse = reference_attention(q, k, v, some_mask(), scale=0.3)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * 0.3
    wanted = torch.where(some_mask(), scores.exp(), 0.0).sum(-1).log()
    torch.testing.assert_close(lse, wanted)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (x.detach() * 100 for x in inputs())
    out, lse = reference_attention(q.float(), k.float(), v.float(), some_mask())
    assert out.isfinite().all()
    assert lse.max() > 200  # exp of it is out of float32's range


def test_a_row_without_a_key_gives_zero_and_minus_infinity_and_zero_gradients() -> None:
    q, k, v = inputs()
    mask = some_mask()
    mask[:, :, 3] = False
    bias = torch.zeros(1, 1, 9, dtype=torch.float64, requires_grad=True)
    out, lse = reference_attention(q, k, v, mask, key_bias=bias)
    assert not out[:, :, 3].any()
    assert (lse[:, :, 3] == -torch.inf).all()
    seen = lse[:, :, [0, 1, 2, 4, 5, 6]]
    gradients = torch.autograd.grad(out.square().sum() + out[:, :, 3].sum() + seen.sum(), (q, k, v, bias))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, :, 3].any()
    assert gradients[0][:, :, 2].any()


def test_gradient_through_an_empty_rows_own_lse_is_zero_and_not_nan() -> None:
    q, k, v = inputs()
    _, lse = reference_attention(q, k, v, torch.zeros(1, 1, 7, 9, dtype=torch.bool))
    gradients = torch.autograd.grad(lse, (q, k), torch.ones_like(lse))
    assert all(not gradient.any() for gradient in gradients)


def test_gradients_agree_with_finite_differences() -> None:
    leaves = inputs(2, 1, queries=3, keys=4)
    bias = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda q, k, v, b: reference_attention(q, k, v, mask, key_bias=b), (*leaves, bias), atol=1e-6
    )


def test_log_n_as_bias_of_a_key_is_n_copies_of_it() -> None:
    q, k, v = inputs()
    copies = torch.tensor([1, 3, 1, 1, 2, 1, 1, 1, 5])
    one, lse_one = reference_attention(q, k, v, key_bias=copies.double().log()[None, None])
    many, lse_many = reference_attention(q, k.repeat_interleave(copies, 2), v.repeat_interleave(copies, 2))
    torch.testing.assert_close(one, many)
    torch.testing.assert_close(lse_one, lse_many)


def test_a_key_biased_by_minus_infinity_is_no_key() -> None:
    q, k, v = inputs()
    bias = torch.zeros(1, 1, 9, dtype=torch.float64)
    bias[..., 4:] = -torch.inf
    out, _ = reference_attention(q, k, v, key_bias=bias)
    torch.testing.assert_close(out, reference_attention(q, k[:, :, :4], v[:, :, :4])[0])
    nothing, lse = reference_attention(q, k, v, key_bias=torch.full((1, 1, 9), -torch.inf))
    assert not nothing.any()
    assert (lse == -torch.inf).all()


def test_heads_that_do_not_divide_are_refused() -> None:
    q, k, v = inputs(4, 3)
    with pytest.raises(ValueError, match="k has 3 heads; expected a divisor of q's 4"):
        reference_attention(q, k, v)
