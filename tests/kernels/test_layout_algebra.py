"""Layouts made from layouts, against the same logic on token masks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.kernels import policies
from mezzotint.kernels.layout import BlockLayout


def random_layouts(seed: int, shapes: list[tuple[int, int]], partial: str = "none") -> list[BlockLayout]:
    """Layouts of random blocks, "some" or "all" of them cut by bits."""
    generator = torch.Generator().manual_seed(seed)
    layouts = []
    for index, shape in enumerate(shapes):
        mask = torch.rand(*shape, 5, 4, generator=generator) < 0.5
        layout = BlockLayout.from_dense(mask, block_q=16, block_k=32, num_q=75, num_k=128)
        if partial == "all" or (partial == "some" and index % 2 == 0):
            pairs = layout.token_mask() & (torch.rand(*shape, 75, 128, generator=generator) < 0.7)
            layout = BlockLayout.from_token_mask(pairs, block_q=16, block_k=32)
        layouts.append(layout)
    return layouts


PARTIAL = st.sampled_from(["none", "some", "all"])


@settings(deadline=None)
@given(st.integers(0, 10**6), PARTIAL)
def test_union_and_intersection_are_those_of_the_token_masks(seed: int, partial: str) -> None:
    parts = random_layouts(seed, [(1, 1), (2, 1), (1, 3)], partial)
    a, b, c = (part.token_mask() for part in parts)
    assert torch.equal(policies.union(*parts).token_mask(), a | b | c)
    assert torch.equal(policies.intersect(*parts).token_mask(), a & b & c)


@settings(deadline=None)
@given(st.integers(0, 10**6), PARTIAL)
def test_each_head_sees_by_its_own_layout(seed: int, partial: str) -> None:
    parts = random_layouts(seed, [(1, 1), (2, 1), (1, 1)], partial)
    mixed = policies.per_head(parts)
    assert mixed.kv_num.shape[:2] == (2, 3)
    for head, part in enumerate(parts):
        assert torch.equal(mixed.token_mask()[:, head], part.token_mask()[:, 0].expand(2, -1, -1))


@settings(deadline=None)
@given(st.sampled_from([16, 32]), st.sampled_from([16, 32]), st.integers(1, 9), st.integers(1, 9))
def test_smaller_blocks_keep_the_same_token_pairs(block_q: int, block_k: int, height: int, width: int) -> None:
    layout = policies.local_2d((height, width), (4, 8), tile=(4, 8))
    split = policies.split_blocks(layout, block_q=block_q, block_k=block_k)
    assert (split.block_q, split.block_k) == (block_q, block_k)
    assert torch.equal(split.token_mask(), layout.token_mask())
    assert split.inv_perm is layout.inv_perm
    BlockLayout.from_dense(  # the constructor's checks pass
        split.to_dense(), block_q=block_q, block_k=block_k, num_q=split.num_q, num_k=split.num_k, q_len=split.q_len,
        k_len=split.k_len, perm=split.perm, inv_perm=split.inv_perm,
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(16, 16), (16, 32), (32, 16), (32, 64)]))
def test_smaller_blocks_keep_partly_masked_pairs(seed: int, blocks: tuple[int, int]) -> None:
    pairs = torch.rand(2, 1, 75, 128, generator=torch.Generator().manual_seed(seed)) < 0.97
    pairs[..., :32, :64] = False
    layout = BlockLayout.from_token_mask(pairs, block_q=32, block_k=64)
    split = policies.split_blocks(layout, block_q=blocks[0], block_k=blocks[1])
    assert torch.equal(split.token_mask(), pairs)
    assert not split.to_dense()[:, :, : 32 // blocks[0], : 64 // blocks[1]].any()


def test_what_completes_a_block_leaves_no_mask() -> None:
    lower = policies.causal(75, block=16)
    upper = BlockLayout.from_token_mask(torch.ones(1, 1, 75, 75).triu().bool(), block_q=16, block_k=16)
    whole = policies.union(lower, upper)
    assert whole.keeps_every_pair()
    assert whole.mask_bits is None
    diagonal = policies.intersect(lower, upper)
    assert torch.equal(diagonal.token_mask()[0, 0], torch.eye(75, dtype=torch.bool))
    assert diagonal.kv_num.tolist() == [[[1] * 5]]


def test_valid_tokens_decide_what_is_whole() -> None:
    q_len = torch.tensor([5, 16, 0], dtype=torch.int32)
    pairs = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    pairs[..., 5:16, :] = False  # padding, which is nobody's loss
    pairs[..., 20, 30] = False
    layout = BlockLayout.from_token_mask(pairs, block_q=16, block_k=16, q_len=q_len)
    joined = policies.union(layout, layout)
    assert joined.kept_pairs() == layout.kept_pairs() == 5 * 48 + 16 * 48 - 1
    assert (joined.mask_idx >= 0).sum() == 1  # type: ignore[operator]
    assert joined.kv_num.tolist() == [[[3, 3, 0]]]


FULL = policies.full((8, 8), (4, 4))
SEQUENCE = BlockLayout.full(block_q=16, block_k=16, num_q=64, num_k=64)
CROSS = BlockLayout.full(block_q=16, block_k=16, num_q=64, num_k=32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: policies.union(), "layouts is empty"),
        (lambda: policies.union(SEQUENCE, CROSS), r"layouts\[1\].num_k is 32; expected 64"),
        (lambda: policies.union(FULL, SEQUENCE), r"layouts\[1\].perm is another token order"),
        (lambda: policies.union(*random_layouts(0, [(1, 2), (1, 3)])), r"layouts\[0\] has a heads size of 2"),
        (lambda: policies.per_head(random_layouts(0, [(1, 1), (1, 2)])), r"layouts\[1\] has 2 heads; expected 1"),
        (lambda: policies.split_blocks(FULL, block_q=32, block_k=16), "block_q is 32; expected one of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(build: Callable[[], BlockLayout], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
