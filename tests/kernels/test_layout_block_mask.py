"""BlockLayout to and from FlexAttention's BlockMask, token by token, and in eager FlexAttention itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mezzotint.kernels.layout import BlockLayout

SIZES = {"block_q": 32, "block_k": 16, "num_q": 70, "num_k": 40}  # 3 x 3 blocks, ragged both sides


def random_layout(seed: int, *, padded: bool, mixed: bool = False) -> BlockLayout:
    generator = torch.Generator().manual_seed(seed)
    if mixed:
        pairs = torch.rand(2, 3, 70, 40, generator=generator) < 0.9
        pairs[..., :32, :16] = True
        pairs[..., 32:64, :16] = False
        return BlockLayout.from_token_mask(pairs, block_q=32, block_k=16)
    mask = torch.rand(2, 3, 3, 3, generator=generator) < 0.5
    q_len = k_len = None
    if padded:
        q_len, k_len = (
            torch.tensor([int(torch.randint(0, n + 1, (), generator=generator)) for n in whole], dtype=torch.int32)
            for whole in ([32, 32, 6], [16, 16, 8])
        )
    return BlockLayout.from_dense(mask, **SIZES, q_len=q_len, k_len=k_len)


def flex_token_mask(block_mask: BlockMask, layout: BlockLayout) -> Tensor:
    """What compiled FlexAttention reads: full blocks whole, partial ones through mask_mod."""
    rows = torch.arange(layout.num_q)[:, None]
    columns = torch.arange(layout.num_k)
    tokens = torch.zeros((*layout.kv_num.shape[:2], layout.num_q, layout.num_k), dtype=torch.bool)
    for num, idx, partial in (
        (block_mask.kv_num_blocks, block_mask.kv_indices, True),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, False),
    ):
        for b, h, row in torch.cartesian_prod(*(torch.arange(size) for size in num.shape)).tolist():
            modded = block_mask.mask_mod(torch.tensor(b), torch.tensor(h), rows, columns)
            for column in idx[b, h, row, : int(num[b, h, row])].tolist():
                inside = (rows // layout.block_q == row) & (columns // layout.block_k == column)
                tokens[b, h] |= inside & (modded if partial else True)
    return tokens


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["whole", "padded", "mixed"]))
def test_block_mask_means_the_same_pairs_and_comes_back(seed: int, blocks: str) -> None:
    layout = random_layout(seed, padded=blocks == "padded", mixed=blocks == "mixed")
    block_mask = layout.to_block_mask()
    assert torch.equal(flex_token_mask(block_mask, layout), layout.token_mask())
    again = BlockLayout.from_block_mask(block_mask)
    assert torch.equal(again.token_mask(), layout.token_mask())
    assert (again.mask_bits is None) == (blocks != "mixed")
    if layout.q_len is None:
        assert torch.equal(again.to_dense(), layout.to_dense())


@pytest.mark.parametrize("mixed", [False, True])
def test_eager_flex_attention_under_the_block_mask_is_not_dense(mixed: bool) -> None:
    layout = BlockLayout.from_dense(torch.eye(3, dtype=torch.bool)[None, None], **SIZES)
    if mixed:
        layout = BlockLayout.from_token_mask(torch.ones(1, 1, 70, 40).tril().bool(), block_q=32, block_k=16)
    q, k, v = (torch.randn(1, 1, n, 16, dtype=torch.float64) for n in (70, 40, 40))
    out = flex_attention(q, k, v, block_mask=layout.to_block_mask())
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~layout.token_mask(), -torch.inf)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)


def test_a_block_mask_that_cuts_through_blocks_is_taken_exactly_refused_or_taken_whole() -> None:
    causal = create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 64, 64, device="cpu", BLOCK_SIZE=16)
    exact = BlockLayout.from_block_mask(causal)
    assert torch.equal(exact.token_mask()[0, 0], torch.ones(64, 64).tril().bool())
    assert len(exact.mask_bits) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block_mask has 4 partial blocks"):
        BlockLayout.from_block_mask(causal, partial="refuse")
    whole = BlockLayout.from_block_mask(causal, partial="whole")
    assert torch.equal(whole.to_dense()[0, 0], torch.ones(4, 4).tril().bool())
    with pytest.raises(ValueError, match="partial is 'some'"):
        BlockLayout.from_block_mask(causal, partial="some")


@pytest.mark.parametrize("tokens", [(64, 64), (70, 90)])
def test_masks_of_each_head_and_of_ragged_ends_are_taken_exactly(tokens: tuple[int, int]) -> None:
    def windows(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() <= 5 + 9 * h + b

    block_mask = create_block_mask(windows, 2, 3, *tokens, device="cpu", BLOCK_SIZE=16)
    gap = (torch.arange(tokens[0])[:, None] - torch.arange(tokens[1])).abs()
    reach = 5 + 9 * torch.arange(3)[:, None, None] + torch.arange(2)[:, None, None, None]
    assert torch.equal(BlockLayout.from_block_mask(block_mask).token_mask(), gap <= reach)
