"""Policies against loops over single tokens on the grid, in the caller's order."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels import policies
from mezzotint.kernels.layout import BlockLayout

TILES = {2: [(4, 4), (2, 8), (8, 4)], 3: [(1, 4, 4), (2, 2, 4), (2, 4, 4)]}


def raster_mask(layout: BlockLayout) -> Tensor:
    """The token mask with rows and columns in the caller's order, padding left out."""
    mask = layout.token_mask()
    if layout.inv_perm is None:
        return mask
    return mask[..., layout.inv_perm, :][..., layout.inv_perm]


def places(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in grid))


def grid_mask(grid: tuple[int, ...], sees: Callable[[tuple[int, ...], tuple[int, ...]], bool]) -> Tensor:
    """[tokens, tokens] from a rule about two places of the grid."""
    return torch.tensor([[sees(query, key) for key in places(grid)] for query in places(grid)])


@st.composite
def grids(draw: Any, axes: int, limit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(draw(st.integers(1, limit)) for _ in range(axes)), draw(st.sampled_from(TILES[axes]))


def window_rule(
    grid: tuple[int, ...], window: tuple[int, ...], tile: tuple[int, ...]
) -> Callable[[tuple[int, ...], tuple[int, ...]], bool]:
    """Slides a window of whole tiles, tile by tile, until it stands at the query's tile or at the border."""

    def sees(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
        for axis in range(len(grid)):
            tiles = math.ceil(grid[axis] / tile[axis])
            size = min(math.ceil(window[axis] / tile[axis]), tiles)
            first = 0
            while first + size // 2 < query[axis] // tile[axis] and first + size < tiles:
                first += 1
            if not first * tile[axis] <= key[axis] < (first + size) * tile[axis]:
                return False
        return True

    return sees


@settings(max_examples=15, deadline=None)
@given(grids(2, 14), st.integers(1, 16), st.integers(1, 16))
def test_image_windows_are_those_of_a_search_on_the_grid(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], height: int, width: int
) -> None:
    grid, tile = sizes
    layout = policies.local_2d(grid, (height, width), tile=tile)
    assert torch.equal(raster_mask(layout)[0, 0], grid_mask(grid, window_rule(grid, (height, width), tile)))


@settings(max_examples=15, deadline=None)
@given(grids(3, 6), st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)))
def test_video_windows_are_those_of_a_search_on_the_grid(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], window: tuple[int, int, int]
) -> None:
    grid, tile = sizes
    layout = policies.local_3d(grid, window, tile=tile)
    assert torch.equal(raster_mask(layout)[0, 0], grid_mask(grid, window_rule(grid, window, tile)))


def test_inside_the_grid_a_window_holds_what_is_near_enough() -> None:
    layout = policies.local_2d((40, 40), (24, 24), tile=(8, 8))
    mask = raster_mask(layout)[0, 0].view(40, 40, 40, 40)
    assert mask[20, 20].sum() == 24 * 24
    assert mask[20, 20, 8:32, 8:32].all()


def test_a_clamped_window_keeps_its_size_in_the_corner() -> None:
    layout = policies.local_2d((40, 40), (24, 24), tile=(8, 8))
    assert (layout.kv_num == 9).all()
    assert raster_mask(layout)[0, 0].view(40, 40, 40, 40)[0, 0, :24, :24].all()


def test_a_window_along_a_sequence_needs_no_order_and_ends_ragged() -> None:
    layout = policies.local_1d(100, 48, block=16)
    assert layout.perm is None
    assert layout.num_q == 100
    assert torch.equal(raster_mask(layout)[0, 0], grid_mask((100,), window_rule((100,), (48,), (16,))))


def test_a_window_as_large_as_the_grid_is_full_attention() -> None:
    wide = policies.local_2d((20, 12), (99, 99), tile=(4, 4))
    full = policies.full((20, 12), (4, 4))
    assert torch.equal(wide.to_dense(), full.to_dense())
    assert full.density() == 1.0
    assert raster_mask(full).all()


@settings(max_examples=12, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)), st.sampled_from(TILES[3]), st.booleans())
def test_radial_attention_is_its_rule_on_every_pair(
    grid: tuple[int, int, int], tile: tuple[int, int, int], first_frame: bool
) -> None:
    _, rows, columns = (math.ceil(size / side) for size, side in zip(grid, tile, strict=True))

    def sees(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
        gaps = [abs(a // side - b // side) for a, b, side in zip(query, key, tile, strict=True)]
        narrowing = 2 ** math.floor(math.log2(max(gaps[0], 1)))
        if first_frame and key[0] < tile[0]:
            return True
        side = math.sqrt(narrowing)
        if gaps[1] + 1 <= rows / side + 1e-9 and gaps[2] + 1 <= columns / side + 1e-9:
            return True
        return gaps[1] == gaps[2] == 0 and gaps[0] % math.ceil(narrowing / (rows * columns)) == 0

    layout = policies.radial(grid, tile=tile, first_frame=first_frame)
    assert torch.equal(raster_mask(layout)[0, 0], grid_mask(grid, sees))


def test_radial_attention_thins_out_with_the_distance_in_time() -> None:
    layout = policies.radial((32, 32, 32), tile=(1, 8, 8), first_frame=False)
    by_frames = layout.to_dense()[0, 0].view(32, 16, 32, 16).sum((1, 3))
    assert by_frames[0, 0] == by_frames[0, 1] == 16 * 16
    assert by_frames[0, [1, 2, 4, 8, 16]].diff().le(0).all()
    assert by_frames[0, 16] == 16  # the tile at the same place alone


def test_radial_attention_skips_frames_once_one_tile_is_too_wide() -> None:
    layout = policies.radial((16, 4, 8), tile=(1, 4, 4), first_frame=False)  # two tiles a frame
    seen = layout.to_dense()[0, 0].view(16, 2, 16, 2).any(1).any(-1)[0]
    assert seen.tolist() == [True] * 4 + [d % 2 == 0 for d in range(4, 8)] + [d % 4 == 0 for d in range(8, 16)]


def test_every_head_has_its_shard_and_the_local_blocks() -> None:
    local = policies.local_1d(16 * 12, 48, block=16)
    layout = policies.strided_shards(local, heads=6, stride=4)
    dense = layout.to_dense()[0]
    for head, row, column in itertools.product(range(6), range(12), range(12)):
        wanted = column % 4 == head % 4 or bool(local.to_dense()[0, 0, row, column])
        assert bool(dense[head, row, column]) == wanted
    assert dense[:4].any(0).all()


def test_global_tokens_see_all_and_are_seen_by_all() -> None:
    layout = policies.global_tokens(policies.local_2d((12, 10), (4, 4), tile=(4, 4)), [57, 3])
    mask = raster_mask(layout)[0, 0]
    assert mask[[57, 3]].all()
    assert mask[:, [57, 3]].all()
    in_tile = {(row // 4, column // 4) for row, column in (divmod(57, 10), divmod(3, 10))}

    def sees(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
        tiles = [(row // 4, column // 4) for row, column in (query, key)]
        return tiles[0] == tiles[1] or any(tile in in_tile for tile in tiles)

    assert torch.equal(mask, grid_mask((12, 10), sees))


def test_sinks_are_seen_by_all_and_see_no_more_than_before() -> None:
    before = policies.diagonal(policies.full((8, 8), (4, 4)))
    layout = policies.sinks(before, torch.tensor([0]))
    mask = layout.to_dense()[0, 0]
    assert mask[:, 0].all()
    assert torch.equal(mask[:, 1:], before.to_dense()[0, 0, :, 1:])


@pytest.mark.parametrize(("block_q", "block_k"), [(16, 16), (64, 16), (16, 64)])
def test_a_diagonal_holds_each_tokens_own_block(block_q: int, block_k: int) -> None:
    layout = policies.diagonal(BlockLayout.full(block_q=block_q, block_k=block_k, num_q=150, num_k=150))
    rows, columns = (-(-150 // block) for block in (block_q, block_k))
    wanted = torch.zeros(rows, columns, dtype=torch.bool)
    for token in range(150):
        wanted[token // block_q, token // block_k] = True
    assert torch.equal(layout.to_dense()[0, 0], wanted)


@settings(max_examples=15, deadline=None)
@given(grids(2, 12), st.integers(1, 40))
def test_text_comes_first_and_sees_and_is_seen_by_all(
    sizes: tuple[tuple[int, ...], tuple[int, ...]], num_text: int
) -> None:
    grid, tile = sizes
    image = policies.local_2d(grid, tile, tile=tile)
    joint = policies.text_first(image, num_text)
    mask = raster_mask(joint)[0, 0]
    assert mask.shape == (num_text + math.prod(grid),) * 2
    assert mask[:num_text].all()
    assert mask[:, :num_text].all()
    assert torch.equal(mask[num_text:, num_text:], raster_mask(image)[0, 0])
    x = torch.randn(1, 1, num_text + math.prod(grid), 2)
    assert torch.equal(joint.restore(joint.arrange(x)), x)


@pytest.mark.parametrize(("block_q", "block_k"), [(16, 64), (64, 16)])
def test_text_before_a_plain_sequence_of_unequal_blocks(block_q: int, block_k: int) -> None:
    plain = BlockLayout.full(block_q=block_q, block_k=block_k, num_q=100, num_k=100)
    joint = policies.text_first(policies.diagonal(plain), 10)
    mask = raster_mask(joint)[0, 0]
    assert mask.shape == (110, 110)
    assert mask[:10].all()
    assert mask[:, :10].all()
    assert torch.equal(mask[10:, 10:], policies.diagonal(plain).token_mask()[0, 0])
    listed = joint.kv_idx[0, 0].long()
    used = torch.arange(listed.shape[-1]) < joint.kv_num[0, 0][:, None]
    assert (joint.k_lengths()[listed][used] > 0).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: policies.full((9, 11), (4, 4)),
        lambda: policies.local_2d((9, 11), (8, 8), tile=(4, 4)),
        lambda: policies.local_3d((3, 9, 11), (2, 8, 8), tile=(2, 4, 4)),
        lambda: policies.radial((3, 9, 11), tile=(1, 4, 4)),
        lambda: policies.text_first(policies.local_2d((9, 11), (8, 8), tile=(4, 4)), 21),
        lambda: policies.strided_shards(policies.local_1d(100, 32, block=16), heads=4, stride=3),
        lambda: policies.causal(100, block=32),
        lambda: policies.text_first(policies.causal(100, block=32), 21),
    ],
)
def test_policies_pass_the_constructors_checks_and_builders_leave_them_out(build: Callable[[], BlockLayout]) -> None:
    made = build()
    names = [field.name for field in dataclasses.fields(BlockLayout) if field.init]
    checked = BlockLayout(**{name: getattr(made, name) for name in names})
    assert torch.equal(checked.kv_idx, made.kv_idx)


def test_a_video_of_sixteen_thousand_tokens_has_the_density_of_its_window() -> None:
    layout = policies.local_3d((16, 32, 32), (12, 12, 12))
    assert layout.num_q == 16384
    assert (layout.kv_num == 27).all()
    assert layout.density() == pytest.approx(27 / 256)


@pytest.mark.parametrize("num_tokens", [1, 64, 100])
def test_causal_sees_itself_and_what_came_before(num_tokens: int) -> None:
    layout = policies.causal(num_tokens, block=16)
    assert torch.equal(layout.token_mask()[0, 0], torch.ones(num_tokens, num_tokens).tril().bool())
    assert layout.kept_pairs() == num_tokens * (num_tokens + 1) // 2
    if num_tokens > 1:
        assert len(layout.mask_bits) == 1  # type: ignore[arg-type]


def test_what_extends_a_partly_masked_layout_keeps_its_pairs() -> None:
    causal = policies.causal(100, block=32)
    pairs = causal.token_mask()[0, 0]
    block = torch.arange(100) // 32
    seen_by_all = pairs | (block == 1)
    assert torch.equal(policies.sinks(causal, [40]).token_mask()[0, 0], seen_by_all)
    everywhere = seen_by_all | (block == 1)[:, None]
    assert torch.equal(policies.global_tokens(causal, [40]).token_mask()[0, 0], everywhere)
    shards = policies.strided_shards(causal, heads=2, stride=2).token_mask()[0]
    for head in range(2):
        assert torch.equal(shards[head], pairs | (block % 2 == head))
    joint = raster_mask(policies.text_first(causal, 5))[0, 0]
    assert joint[:5].all()
    assert joint[:, :5].all()
    assert torch.equal(joint[5:, 5:], pairs)
    assert policies.diagonal(causal).mask_bits is None
    assert policies.full_like(causal).keeps_every_pair()


FULL = policies.full((8, 8), (4, 4))
CROSS = BlockLayout.full(block_q=16, block_k=16, num_q=64, num_k=32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: policies.local_2d((8, 8), (4, 0), tile=(4, 4)), r"window is \(4, 0\)"),
        (lambda: policies.local_3d((8, 8), (4, 4, 4)), "tile is"),
        (lambda: policies.radial((8, 8), tile=(4, 4)), r"grid is \(8, 8\); expected \(frames, rows, columns\)"),
        (lambda: policies.strided_shards(FULL, heads=0, stride=2), "heads is 0"),
        (lambda: policies.strided_shards(FULL, heads=2, stride=0), "stride is 0"),
        (lambda: policies.global_tokens(FULL, [64]), "tokens holds 64; expected 0 to 63"),
        (lambda: policies.sinks(FULL, [-1]), "tokens holds -1"),
        (lambda: policies.global_tokens(CROSS, [0]), "layout has 64 queries and 32 keys"),
        (lambda: policies.diagonal(CROSS), "layout has 64 queries and 32 keys"),
        (lambda: policies.text_first(CROSS, 4), "layout has 64 queries and 32 keys"),
        (lambda: policies.text_first(FULL, 0), "num_text is 0"),
        (lambda: policies.causal(0), "num_q is 0"),
        (lambda: policies.causal(64, block=48), "block_q is 48"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(build: Callable[[], BlockLayout], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
