"""Tile order against the place of every single token."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.kernels import policies
from mezzotint.kernels.tile_order import tile_order

TILES = {2: [(4, 4), (2, 8), (8, 4)], 3: [(1, 4, 4), (2, 2, 4), (2, 4, 4)]}


@st.composite
def grids(draw: Any, axes: int, limit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(draw(st.integers(1, limit)) for _ in range(axes)), draw(st.sampled_from(TILES[axes]))


@settings(max_examples=50, deadline=None)
@given(st.one_of(grids(2, 20), grids(3, 7)))
def test_a_block_is_one_tile_and_every_token_has_one_position(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    grid, tile = sizes
    order = tile_order(grid, tile)
    block = math.prod(tile)
    tokens = list(itertools.product(*(range(size) for size in grid)))
    assert order.perm is not None
    assert order.inv_perm is not None
    assert order.inv_perm.unique().numel() == len(tokens)
    assert torch.equal(order.perm[order.inv_perm], torch.arange(len(tokens)))
    for index, place in enumerate(tokens):
        in_block, slot = divmod(int(order.inv_perm[index]), block)
        assert order.coords[in_block].tolist() == [x // side for x, side in zip(place, tile, strict=True)]
        assert slot < int(order.lengths[in_block])
    assert int(order.lengths.sum()) == len(tokens)
    assert ((order.perm >= 0) & (order.perm < len(tokens))).all()


def test_tokens_in_tile_order_come_back() -> None:
    layout = policies.full((5, 9), (4, 4))
    x = torch.randn(2, 3, 45, 8)
    assert layout.arrange(x).shape == (2, 3, 6 * 16, 8)
    assert torch.equal(layout.restore(layout.arrange(x)), x)


def test_an_order_made_in_inference_mode_trains() -> None:
    with torch.inference_mode():
        order = tile_order((12, 20), (4, 4))
    assert order.perm is not None
    x = torch.randn(1, 1, 240, 4, requires_grad=True)
    x.index_select(-2, order.perm).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    ("grid", "tile", "message"),
    [
        ((8, 0), (4, 4), r"grid is \(8, 0\); expected at least 1 token"),
        ((), (), r"grid is \(\); expected at least 1 token"),
        ((8, 8), (4,), r"tile is \(4,\); expected at least 1 token along each of the grid's 2"),
        ((8, 8), (0, 4), r"tile is \(0, 4\); expected at least 1 token along each of the grid's 2"),
        ((8, 8), (3, 4), r"tile is \(3, 4\), 12 tokens; expected one of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(
    grid: tuple[int, ...], tile: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tile_order(grid, tile)
