"""Cells and tiles of kept tokens: with all tokens kept they are those of the whole grid."""

import pytest
import torch

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.kept_attention import kept_attention, sorted_by_tiles
from mezzotint.dit.kept_grids import KeptTokenGrids
from mezzotint.dit.segments import TokenGrids
from mezzotint.dit.sparse_attention import sparse_attention

GRIDS = [((8, 8), (3, 3)), ((6, 10), (5, 4)), ((7, 5), (7, 2)), ((4, 9), (1, 1)), ((5, 5), (5, 5))]
WINDOW = DiTConfig(attention="window", attention_tile=4, attention_window=8)


@pytest.mark.parametrize(("full", "sparse"), GRIDS)
@pytest.mark.parametrize("whole", [0, 3])
def test_all_tokens_kept_in_any_order_are_pooled_and_spread_as_ever(
    full: tuple[int, int], sparse: tuple[int, int], whole: int
) -> None:
    count = full[0] * full[1]
    keep = torch.stack([torch.randperm(count) for _ in range(2)])
    tokens = torch.randn(2, whole + count, 5, dtype=torch.float64)
    plain = TokenGrids(full=full, sparse=sparse, whole=whole)
    kept = KeptTokenGrids(full=full, sparse=sparse, whole=whole, keep=keep)
    rows = torch.cat([torch.arange(whole).expand(2, -1), whole + keep], dim=1)[..., None].expand(-1, -1, 5)
    pooled = kept.pool(tokens.gather(1, rows))
    if full != sparse:  # on the full grid every token stays itself, where it lies
        torch.testing.assert_close(pooled, plain.pool(tokens))
        spread = plain.spread(pooled[:, whole:]).gather(1, keep[..., None].expand(-1, -1, 5))
        torch.testing.assert_close(kept.spread(pooled[:, whole:]), spread)
    else:
        assert torch.equal(pooled, tokens.gather(1, rows))
        assert torch.equal(kept.spread(pooled), pooled)


def test_an_empty_cell_takes_the_mean_of_all_kept_tokens() -> None:
    keep = torch.tensor([[0, 1, 4], [15, 2, 3]])
    tokens = torch.randn(2, 3, 5, dtype=torch.float64)
    pooled = KeptTokenGrids(full=(4, 4), sparse=(2, 2), keep=keep).pool(tokens)
    for picture, cells in enumerate(([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]],
                                     [[0, 1, 2], [1, 2], [0, 1, 2], [0]])):
        for cell, members in enumerate(cells):
            torch.testing.assert_close(pooled[picture, cell], tokens[picture, members].mean(0))


def test_shares_of_bf16_tokens_are_rounded_once() -> None:
    keep = torch.tensor([[0, 1, 2]])
    shares = KeptTokenGrids(full=(2, 2), sparse=(1, 1), keep=keep)._shares(torch.bfloat16)
    assert torch.equal(shares, torch.full((1, 1, 3), 1 / 3, dtype=torch.bfloat16))


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_with_all_tokens_kept_a_window_is_that_of_the_grid(grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    keep = sorted_by_tiles(WINDOW, grid, torch.stack([torch.randperm(count) for _ in range(2)]))
    kept = kept_attention(WINDOW, grid, keep, 0)
    plain = sparse_attention(WINDOW, grid, 0, torch.device("cpu"))
    assert kept is not None
    assert plain is not None
    assert torch.equal(keep[0], keep[1])
    places = plain.layout.inv_perm
    assert places is not None
    mask = plain.layout.token_mask()[0, 0][places][:, places]
    for picture in range(2):
        assert torch.equal(kept.layout.token_mask()[picture, 0], mask[keep[picture]][:, keep[picture]])
    assert kept.layout.kept_pairs() == 2 * plain.layout.kept_pairs()


def test_whole_tiles_need_no_bit_masks() -> None:
    """Kept squares that are tiles make a layout of whole blocks."""
    tile = torch.arange(64).view(8, 8)
    keep = torch.stack([torch.cat([tile[:4, :4].flatten(), tile[4:, 4:].flatten()]),
                        torch.cat([tile[4:, :4].flatten(), tile[:4, 4:].flatten()])])
    pattern = kept_attention(WINDOW, (8, 8), sorted_by_tiles(WINDOW, (8, 8), keep), 0)
    assert pattern is not None
    assert pattern.layout.mask_bits is None


def test_without_a_pattern_the_order_stays() -> None:
    keep = torch.tensor([[5, 1, 3]])
    assert sorted_by_tiles(DiTConfig(), (8, 8), keep) is keep
    assert kept_attention(DiTConfig(), (8, 8), keep, 4) is None
