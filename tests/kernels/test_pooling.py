"""Pooled blocks against means taken in a loop, their gradient, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels.pooling import pool_blocks


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_by_loop(x: Tensor, block: int, lengths: list[int]) -> Tensor:
    means = [
        x[:, :, i * block : i * block + n].mean(2) if n else torch.zeros_like(x[:, :, 0]) for i, n in enumerate(lengths)
    ]
    return torch.stack(means, dim=2)


@settings(deadline=None)
@given(st.integers(1, 80), st.data())
def test_a_pooled_block_is_the_mean_of_its_valid_tokens(tokens: int, data: Any) -> None:
    whole = [min(16, tokens - start) for start in range(0, tokens, 16)]
    lengths = [data.draw(st.integers(0, n)) for n in whole]
    x = random(2, 3, tokens, 4)
    torch.testing.assert_close(pool_blocks(x, 16), pooled_by_loop(x, 16, whole))
    valid = torch.tensor(lengths, dtype=torch.int32)
    wanted = pooled_by_loop(x, 16, lengths)
    for i, n in enumerate(lengths):
        x[:, :, i * 16 + n : i * 16 + whole[i]] = torch.nan
    torch.testing.assert_close(pool_blocks(x, 16, valid), wanted)


def test_pooling_has_the_gradient_of_a_mean_and_none_in_padding() -> None:
    lengths = torch.tensor([16, 3, 0], dtype=torch.int32)
    x = random(1, 2, 40, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: pool_blocks(y, 16, lengths), (x,))
    (gradient,) = torch.autograd.grad(pool_blocks(x, 16, lengths).sum(), x)
    wanted = torch.tensor([1 / 16] * 16 + [1 / 3] * 3 + [0.0] * 21, dtype=torch.float64)
    torch.testing.assert_close(gradient[0, 1, :, 0], wanted)


def test_pooling_of_half_precision_sums_in_float32() -> None:
    x = (random(1, 1, 128, 8) + 100).to(torch.bfloat16).requires_grad_()
    pooled = pool_blocks(x, 128)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled[0, 0, 0], x[0, 0].detach().float().mean(0))
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    assert gradient.dtype == torch.bfloat16


def test_pooling_is_an_operation_that_torch_can_trace() -> None:
    x, lengths = random(1, 2, 40, 3).requires_grad_(), torch.tensor([16, 3, 0], dtype=torch.int32)
    torch.library.opcheck(torch.ops.mezzotint.pool_blocks.default, (x, lengths, 16))


@pytest.mark.parametrize(
    ("x", "block", "lengths", "message"),
    [
        (torch.zeros(1, 20, 4), 16, None, r"x is of shape \[1, 20, 4\]"),
        (torch.zeros(1, 1, 20, 4, dtype=torch.int32), 16, None, "x is of torch.int32"),
        (torch.zeros(1, 1, 20, 4), 0, None, "block is 0"),
        (torch.zeros(1, 1, 20, 4), 16, torch.tensor([16], dtype=torch.int32), r"expected int32 \[2\]"),
        (torch.zeros(1, 1, 20, 4), 16, torch.tensor([16, 4]), "lengths is torch.int64"),
    ],
)
def test_pooling_refuses_what_does_not_fit(x: Tensor, block: int, lengths: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_blocks(x, block, lengths)
