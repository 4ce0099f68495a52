"""Routed layouts against loops over single rows, in plain Python."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels import policies
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.routing import (
    block_scores,
    share_heads,
    top_blocks,
    top_mass,
    top_regions,
)
from mezzotint.kernels.tile_order import tile_order

RAGGED = BlockLayout.full(block_q=16, block_k=32, num_q=70, num_k=150)  # 5 x 5 blocks


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_by_loop(x: Tensor, block: int, lengths: list[int]) -> Tensor:
    means = [
        x[:, :, i * block : i * block + n].mean(2) if n else torch.zeros_like(x[:, :, 0]) for i, n in enumerate(lengths)
    ]
    return torch.stack(means, dim=2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scores_are_the_products_of_pooled_queries_and_their_pooled_keys(groups: int) -> None:
    q, k = random(2, 4, 70, 8), random(2, groups, 150, 8, seed=1)
    scores = block_scores(q, k, RAGGED)
    pooled_q = pooled_by_loop(q, 16, [16, 16, 16, 16, 6])
    pooled_k = pooled_by_loop(k, 32, [32, 32, 32, 32, 22])
    for b, h in itertools.product(range(2), range(4)):
        wanted = pooled_q[b, h] @ pooled_k[b, h // (4 // groups)].T / math.sqrt(8)
        torch.testing.assert_close(scores[b, h], wanted)
    torch.testing.assert_close(block_scores(q, k, RAGGED, scale=1.0), scores * math.sqrt(8))


def test_shared_heads_score_by_the_mean_of_their_group() -> None:
    scores = random(2, 6, 5, 5)
    shared = share_heads(scores, 3)
    assert shared.shape == scores.shape
    for head in range(6):
        first = head // 2 * 2
        torch.testing.assert_close(shared[:, head], (scores[:, first] + scores[:, first + 1]) / 2)
    torch.testing.assert_close(share_heads(scores, 1), scores.mean(1, keepdim=True))


def candidates_and_always(seed: int) -> tuple[BlockLayout, BlockLayout]:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(1, 1, 5, 5, generator=generator) < 0.7
    kept = torch.rand(1, 3, 5, 5, generator=generator) < 0.25
    sizes = {"block_q": 16, "block_k": 32, "num_q": 70, "num_k": 150}
    return BlockLayout.from_dense(allowed, **sizes), BlockLayout.from_dense(kept, **sizes)


@pytest.mark.parametrize("choose", ["blocks", "mass", "regions"])
@pytest.mark.parametrize("with_always", [False, True])
def test_partly_masked_candidates_are_chosen_with_their_masks(choose: str, with_always: bool) -> None:
    causal, scores = policies.causal(80, block=16), random(1, 2, 5, 5)
    every_fifth = torch.arange(80)[:, None] % 5 == torch.arange(80) % 5
    always = BlockLayout.from_token_mask(every_fifth[None, None], block_q=16, block_k=16) if with_always else None
    if choose == "blocks":
        layout = top_blocks(scores, causal, 2, always=always)
    elif choose == "mass":
        layout = top_mass(scores, causal, 0.6, always=always)
    else:
        q = random(1, 2, 80, 8)
        layout = top_regions(q, q, causal, torch.arange(5), 3, groups=2, always=always)
    mask = layout.token_mask()
    lower = torch.ones(80, 80).tril().bool()
    assert not (mask & ~lower & ~(every_fifth & torch.tensor(with_always))).any()
    assert not with_always or mask[..., every_fifth].all()
    blocks = mask[0].unflatten(-1, (5, 16)).unflatten(-3, (5, 16)).transpose(-3, -2)
    wanted = [lower, lower | every_fifth] if with_always else [lower]
    choices = [x.unflatten(-1, (5, 16)).unflatten(-3, (5, 16)).transpose(-3, -2) for x in (*wanted, every_fifth)]
    exact = torch.stack([(blocks == choice).all(-1).all(-1) for choice in choices]).any(0)
    assert (exact | ~blocks.any(-1).any(-1)).all()
    assert blocks.any(-1).any(-1).sum() > 5


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_top_blocks_of_each_row_are_those_of_a_sort(seed: int, count: int, with_always: bool) -> None:
    candidates, always = candidates_and_always(seed)
    scores = random(2, 3, 5, 5, seed=seed)
    layout = top_blocks(scores, candidates, count, always=always if with_always else None)
    dense = layout.to_dense()
    for b, h, row in itertools.product(range(2), range(3), range(5)):
        kept = set(always.to_dense()[0, h, row].nonzero().flatten().tolist()) if with_always else set()
        allowed = candidates.to_dense()[0, 0, row].nonzero().flatten().tolist()
        rest = sorted((c for c in allowed if c not in kept), key=lambda c: -scores[b, h, row, c].item())
        wanted = kept | set(rest[: max(0, count - len(kept))])
        assert set(dense[b, h, row].nonzero().flatten().tolist()) == wanted
    names = ("block_q", "block_k", "num_q", "num_k", "kv_num", "kv_idx")
    BlockLayout(**{name: getattr(layout, name) for name in names})  # its checks pass


def test_ties_go_to_the_earlier_block() -> None:
    layout = top_blocks(torch.zeros(1, 1, 5, 5), RAGGED, 2)
    assert layout.kv_idx.tolist() == [[[[0, 1]] * 5]]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0), st.booleans(), st.sampled_from([None, 1, 3]))
def test_top_mass_keeps_the_fewest_blocks_that_reach_it(
    seed: int, mass: float, with_always: bool, max_count: int | None
) -> None:
    candidates, always = candidates_and_always(seed)
    scores = 2 * random(2, 3, 5, 5, seed=seed)
    layout = top_mass(scores, candidates, mass, always=always if with_always else None, max_count=max_count)
    dense = layout.to_dense()
    lengths = [32, 32, 32, 32, 22]
    for b, h, row in itertools.product(range(2), range(3), range(5)):
        kept = always.to_dense()[0, h, row].nonzero().flatten().tolist() if with_always else []
        allowed = candidates.to_dense()[0, 0, row].nonzero().flatten().tolist()
        weights = {c: lengths[c] * math.exp(scores[b, h, row, c].item()) for c in allowed}
        chosen = list(kept)
        rest = sorted((c for c in allowed if c not in kept), key=lambda c: -weights[c])
        for column in rest:
            reached = sum(weights.get(c, 0.0) for c in chosen) / sum(weights.values())
            full = max_count is not None and len(chosen) >= max_count
            if full or (reached >= mass and mass < 1):
                break
            chosen.append(column)
        assert set(dense[b, h, row].nonzero().flatten().tolist()) == set(chosen)


def test_rows_differ_in_number_under_one_mass() -> None:
    scores = torch.zeros(1, 1, 5, 5)
    scores[0, 0, 0, 3] = 20.0
    layout = top_mass(scores, RAGGED, 0.7)
    assert layout.kv_num.tolist() == [[[1, 4, 4, 4, 4]]]
    assert layout.kv_idx[0, 0, 0, 0] == 3


def test_a_row_without_candidates_stays_empty() -> None:
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 2, :] = False
    candidates = BlockLayout.from_dense(mask, block_q=16, block_k=32, num_q=70, num_k=150)
    scores = random(1, 2, 5, 5)
    assert top_blocks(scores, candidates, 3).kv_num.tolist() == [[[3, 3, 0, 3, 3]] * 2]
    assert top_mass(scores, candidates, 1.0).kv_num.tolist() == [[[5, 5, 0, 5, 5]] * 2]


def test_blocks_of_padding_alone_are_never_chosen() -> None:
    lengths = torch.tensor([32, 0, 32, 5, 22], dtype=torch.int32)
    candidates = BlockLayout.from_dense(
        torch.ones(1, 1, 5, 5, dtype=torch.bool), block_q=16, block_k=32, num_q=70, num_k=150, k_len=lengths
    )
    scores = torch.zeros(1, 1, 5, 5)
    scores[..., 1] = 50.0
    for layout in (top_blocks(scores, candidates, 4), top_mass(scores, candidates, 1.0)):
        assert layout.kv_idx[0, 0, 0].tolist() == [0, 2, 3, 4]


def region_of(place: tuple[int, ...], region: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x // side for x, side in zip(place, region, strict=True))


@pytest.mark.parametrize(
    ("grid", "tile", "region"),
    [
        ((20, 24), (4, 4), (8, 8)),
        ((18, 13), (4, 4), (4, 12)),
        ((16, 16), (4, 8), (4, 8)),
        ((5, 10, 8), (2, 4, 4), (4, 4, 8)),
        ((4, 8, 8), (1, 4, 4), (2, 4, 4)),
    ],
)
@pytest.mark.parametrize(("heads", "key_heads", "groups"), [(4, 2, 1), (4, 4, 2), (2, 1, 2)])
def test_regions_see_their_closest_regions_whole(
    grid: tuple[int, ...], tile: tuple[int, ...], region: tuple[int, ...], heads: int, key_heads: int, groups: int
) -> None:
    candidates = policies.full(grid, tile)
    tokens = list(itertools.product(*(range(size) for size in grid)))
    q, k = random(2, heads, len(tokens), 6), random(2, key_heads, len(tokens), 6, seed=1)
    regions = tile_order(grid, tile).regions(region)
    layout = top_regions(candidates.arrange(q), candidates.arrange(k), candidates, regions, 2, groups=groups)
    mask = layout.token_mask()[..., candidates.inv_perm, :][..., candidates.inv_perm]
    assert mask.shape[:2] == (2, 1 if groups == 1 else heads)
    members: dict[tuple[int, ...], list[int]] = {}
    for index, place in enumerate(tokens):
        members.setdefault(region_of(place, region), []).append(index)
    names = sorted(members)
    mean_q = torch.stack([q[:, :, members[name]].mean(2) for name in names], 2)
    mean_k = torch.stack([k[:, :, members[name]].mean(2) for name in names], 2).repeat_interleave(heads // key_heads, 1)
    affinity = (mean_q @ mean_k.transpose(-1, -2)).unflatten(1, (groups, heads // groups)).mean(2)
    for b, h, row in itertools.product(range(2), range(mask.shape[1]), range(len(names))):
        group = h // (heads // groups) if groups > 1 else 0
        best = affinity[b, group, row].argsort(descending=True)[:2].tolist()
        wanted = torch.zeros(len(tokens), dtype=torch.bool)
        for column in best:
            wanted[members[names[column]]] = True
        for query in members[names[row]][:3]:
            assert torch.equal(mask[b, h, query], wanted)


def test_regions_may_be_limited_to_candidates_and_keep_what_always_counts() -> None:
    grid, tile = (16, 16), (4, 4)
    near = policies.local_2d(grid, (12, 12), tile=tile)
    sinks = policies.sinks(policies.diagonal(near), [0])
    q = random(1, 2, 256, 6)
    regions = tile_order(grid, tile).regions((4, 4))
    layout = top_regions(near.arrange(q), near.arrange(-q), near, regions, 3, always=sinks)
    dense, unlimited = layout.to_dense(), top_regions(near.arrange(q), near.arrange(-q), near, regions, 3).to_dense()
    assert torch.equal(dense, unlimited | sinks.to_dense())
    assert not (unlimited & ~near.to_dense()).any()
    assert not torch.equal(unlimited, near.to_dense().expand_as(unlimited))


SCORES = torch.zeros(1, 2, 5, 5)
THREE_HEADS = BlockLayout.from_dense(
    torch.ones(1, 3, 5, 5, dtype=torch.bool), block_q=16, block_k=32, num_q=70, num_k=150
)
SQUARE = policies.full((8, 8), (4, 4))
X = torch.zeros(1, 2, 64, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: block_scores(X, X, RAGGED), r"q has shape \[1, 2, 64, 4\]; expected \[batch, heads, 70, channels\]"),
        (lambda: block_scores(X, X[:, :1].expand(1, 3, 64, 4), SQUARE), "k has 3 heads; expected a divisor of q's 2"),
        (lambda: share_heads(SCORES, 3), "groups is 3; expected a divisor of the 2 heads"),
        (lambda: top_blocks(SCORES, RAGGED, 0), "count is 0"),
        (lambda: top_blocks(SCORES[..., :4], RAGGED, 1), r"scores has shape \[1, 2, 5, 4\]"),
        (lambda: top_blocks(SCORES, THREE_HEADS, 1), "candidates has a heads size of 3; expected 1 or 2"),
        (lambda: top_blocks(SCORES, RAGGED, 1, always=THREE_HEADS), "always has a heads size of 3; expected 1 or 2"),
        (lambda: top_blocks(SCORES, RAGGED, 1, always=SQUARE), "always.block_k is 16; expected 32, as candidates has"),
        (lambda: top_mass(SCORES, RAGGED, 0.0), "mass is 0.0; expected above 0"),
        (lambda: top_mass(SCORES, RAGGED, 1.1), "mass is 1.1"),
        (lambda: top_mass(SCORES, RAGGED, 0.5, max_count=0), "max_count is 0"),
        (lambda: top_regions(X, X, SQUARE, torch.zeros(3, dtype=torch.int64), 1), r"regions is torch.int64 \[3\]"),
        (lambda: top_regions(X, X, SQUARE, torch.zeros(4, dtype=torch.int64) - 1, 1), "regions holds -1"),
        (lambda: top_regions(X, X, SQUARE, torch.zeros(4, dtype=torch.int64), 0), "count is 0"),
        (lambda: tile_order((8, 8), (4, 4)).regions((6, 4)), r"region is \(6, 4\); expected multiples of the tile"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
