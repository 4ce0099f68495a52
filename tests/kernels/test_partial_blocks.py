"""Blocks that a bit mask cuts through, on every CPU backend and instruction set: against the explicit fp64 reference
and torch's own attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels import BlockLayout, block_sparse_attention, policies
from mezzotint.kernels.reference import reference_attention

pytestmark = pytest.mark.usefixtures("two_threads")

SHAPES = {  # B, H, G, N, M, D, V, block_q, block_k
    "ragged and grouped": (2, 4, 2, 77, 131, 40, 33, 32, 16),
    "large blocks, two tiles each": (1, 2, 1, 200, 261, 64, 72, 128, 128),
    "one query, odd keys": (1, 2, 2, 1, 31, 16, 16, 16, 32),
}


def random_pairs(shape: tuple[int, ...]) -> Tensor:
    """Token pairs with whole blocks, absent ones, mixed ones, and query 5 without any key."""
    B, H, _, N, M, _, _, block_q, block_k = shape
    kind = torch.randint(0, 3, (B, H, -(-N // block_q), -(-M // block_k)))
    kind[..., 0] = 1
    kind = kind.repeat_interleave(block_q, -2).repeat_interleave(block_k, -1)[..., :N, :M]
    pairs = (kind == 0) | ((kind == 1) & (torch.rand(B, H, N, M) < 0.5))
    pairs[..., 0, 0] = True
    if N > 5:
        pairs[:, :, 5] = False
    return pairs


def causal(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(1, 1, *shape[3:5]).tril(diagonal=2).bool()


def sliding(shape: tuple[int, ...]) -> Tensor:
    return causal(shape) & torch.ones(1, 1, *shape[3:5]).triu(diagonal=-19).bool()


def layout_of(pairs: Tensor, shape: tuple[int, ...], **lengths: Tensor) -> BlockLayout:
    layout = BlockLayout.from_token_mask(pairs, block_q=shape[7], block_k=shape[8], **lengths)
    assert layout.mask_bits is not None
    return layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs_of", [random_pairs, causal, sliding])
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_and_gradients_agree_with_the_reference(
    attention: Any, name: str, pairs_of: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    shape = SHAPES[name]
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype)
    pairs = pairs_of(shape)
    out, lse, dq, *_ = attention.check((q, k, v, layout_of(pairs, shape), 0.2, None), d_out, d_lse)
    empty = ~pairs.any(-1).expand(lse.shape)
    assert (lse[empty] == -torch.inf).all()
    assert not out[empty].any()
    assert not dq[empty].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, -0.3])
def test_lengths_and_biases_apply_on_top(attention: Any, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    shape = SHAPES["ragged and grouped"]
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype)
    q_len, k_len = torch.tensor([32, 9, 0], dtype=torch.int32), torch.full((9,), 16, dtype=torch.int32)
    k_len[1:] -= torch.tensor([0, 1, 16, 2, 3, 0, 5, 14], dtype=torch.int32)
    layout = layout_of(random_pairs(shape), shape, q_len=q_len, k_len=k_len)
    bias = torch.randn(2, 4, 131)
    bias[..., 40:50] = -torch.inf
    attention.check((q, k, v, layout, scale, bias), d_out, d_lse)


def test_a_scale_of_zero_leaves_the_mask_alone(attention: Any) -> None:
    torch.manual_seed(2)
    shape = SHAPES["ragged and grouped"]
    q, k, v, *_ = attention.tensors(shape, torch.float32)
    layout = layout_of(random_pairs(shape), shape)
    out, lse = attention.module.forward(q, k, v, layout, 0.0, None)
    wanted, wanted_lse = reference_attention(q, k, v, layout.token_mask(), scale=0.0)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, wanted_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_that_leave_nothing_give_zeros_everywhere(attention: Any, dtype: torch.dtype) -> None:
    shape = (1, 2, 1, 70, 70, 16, 16, 32, 32)
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype)
    layout = BlockLayout(
        block_q=32, block_k=32, num_q=70, num_k=70, kv_num=torch.full((1, 1, 3), 3, dtype=torch.int32),
        kv_idx=torch.arange(3, dtype=torch.int32).expand(1, 1, 3, 3),
        mask_idx=torch.zeros(1, 1, 3, 3, dtype=torch.int32), mask_bits=torch.zeros(1, 32, 1, dtype=torch.int32),
    )  # fmt: skip
    out, lse, *gradients = attention.run((q, k, v, layout, 0.2, None), d_out, d_lse)
    assert (lse == -torch.inf).all()
    assert not any(x.any() for x in (out, *gradients))


def test_a_mask_of_ones_is_a_whole_block(attention: Any) -> None:
    torch.manual_seed(3)
    shape = SHAPES["ragged and grouped"]
    q, k, v, d_out, d_lse = attention.tensors(shape, torch.float32)
    whole = BlockLayout.full(block_q=32, block_k=16, num_q=77, num_k=131)
    ones = BlockLayout(
        block_q=32, block_k=16, num_q=77, num_k=131, kv_num=whole.kv_num, kv_idx=whole.kv_idx,
        mask_idx=torch.zeros_like(whole.kv_idx), mask_bits=torch.full((1, 32, 1), 0xFFFF, dtype=torch.int32),
    )  # fmt: skip
    results = [attention.run((q, k, v, layout, 0.2, None), d_out, d_lse) for layout in (whole, ones)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [(1, 1), (1, 3), (2, 3)])
def test_lists_shared_by_heads_and_sequences_share_their_masks(attention: Any, heads: tuple[int, int]) -> None:
    torch.manual_seed(4)
    shape = (2, 3, 3, 50, 66, 24, 24, 16, 32)
    q, k, v, d_out, _ = attention.tensors(shape, torch.float32)
    pairs = torch.rand(*heads, 50, 66) < 0.6
    pairs[..., 0] = True
    layouts = (layout_of(pairs, shape), layout_of(pairs.expand(2, 3, -1, -1), shape))
    results = [attention.run((q, k, v, layout, 0.2, None), d_out, None) for layout in layouts]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpu", "cpu-torch", "reference"])
@pytest.mark.parametrize("pattern", ["causal", "any"])
def test_gradients_of_the_operation_are_those_of_torchs_attention(pattern: str, backend: str) -> None:
    torch.manual_seed(5)
    leaves = [torch.randn(2, 4, 150, 32, requires_grad=True) for _ in range(3)]
    if pattern == "causal":
        layout = policies.causal(150, block=64)
        wanted = F.scaled_dot_product_attention(*leaves, is_causal=True)
    else:
        pairs = torch.rand(1, 4, 150, 150) < 0.3
        pairs[..., 0] = True
        layout = BlockLayout.from_token_mask(pairs, block_q=64, block_k=32)
        wanted = F.scaled_dot_product_attention(*leaves, attn_mask=pairs)
    out = block_sparse_attention(*leaves, layout, backend=backend)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(x, leaves, upstream) for x in (out, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
