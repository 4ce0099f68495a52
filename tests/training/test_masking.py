"""Which tokens are kept: how many, how often each, and what lies side by side."""

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.training.masking import draw_keep, grid_among_kept, num_kept, only_kept
from mezzotint.training.masking_config import MaskingConfig


def drawn(config: MaskingConfig, batch: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    keep = draw_keep(config, batch, grid, torch.Generator().manual_seed(seed))
    assert keep is not None
    return keep


@given(
    kind=st.sampled_from(["random", "groups"]), ratio=st.floats(0.01, 0.99), rows=st.integers(1, 12),
    columns=st.integers(1, 12), group=st.integers(1, 6), batch=st.integers(1, 4), seed=st.integers(0, 99),
)
def test_each_picture_keeps_its_share_of_tokens_in_order(
    kind: str, ratio: float, rows: int, columns: int, group: int, batch: int, seed: int
) -> None:
    config = MaskingConfig(ratio=ratio, kind=kind, group_size=group)
    keep = drawn(config, batch, (rows, columns), seed)
    assert keep.shape == (batch, max(1, int(rows * columns * (1 - ratio))))
    assert keep.dtype == torch.int64
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0
    assert keep.max() < rows * columns
    assert torch.equal(keep, drawn(config, batch, (rows, columns), seed))


@pytest.mark.parametrize("kind", ["random", "groups"])
@pytest.mark.parametrize("grid", [(8, 8), (5, 9)])
def test_every_token_is_kept_equally_often(kind: str, grid: tuple[int, int]) -> None:
    """Within five deviations of the mean of a binomial."""
    config = MaskingConfig(ratio=0.75, kind=kind, group_size=3)
    batch, share = 40_000, num_kept(config, prod(grid)) / prod(grid)
    often = drawn(config, batch, grid).flatten().bincount(minlength=prod(grid)) / batch
    assert (often - share).abs().max() < 5 * (share * (1 - share) / batch) ** 0.5


def test_pictures_differ() -> None:
    for kind in ("random", "groups"):
        keep = drawn(MaskingConfig(ratio=0.5, kind=kind, group_size=2), 8, (8, 8))
        assert len({tuple(row.tolist()) for row in keep}) == 8


def neighbours_kept(keep: Tensor, grid: tuple[int, int]) -> float:
    """Share of the kept tokens whose right neighbour is kept as well."""
    kept = torch.zeros(len(keep), prod(grid)).scatter(1, keep, 1.0).view(-1, *grid)
    return float((kept[..., 1:] * kept[..., :-1]).sum() / kept[..., :-1].sum())


def test_groups_keep_neighbours_together() -> None:
    alone = neighbours_kept(drawn(MaskingConfig(ratio=0.75), 500, (16, 16)), (16, 16))
    together = neighbours_kept(drawn(MaskingConfig(ratio=0.75, kind="groups", group_size=4), 500, (16, 16)), (16, 16))
    assert alone == pytest.approx(0.25, abs=0.01)
    assert together > 0.75


def test_kept_groups_are_whole_squares_but_for_one() -> None:
    """For some shift of the net around the edges, all squares but at most one are kept whole or dropped whole."""
    keep = drawn(MaskingConfig(ratio=0.7, kind="groups", group_size=4), 300, (16, 16), seed=3)
    kept = torch.zeros(300, 256).scatter(1, keep, 1.0).view(-1, 16, 16)
    cut = torch.stack([
        torch.nn.functional.avg_pool2d(kept.roll((down, right), (1, 2)), 4).flatten(1)
        for down in range(4) for right in range(4)
    ])
    assert (((cut > 0) & (cut < 1)).sum(2).amin(0) == 1).all()  # 76 tokens are four squares and a part of one


def test_nothing_is_drawn_where_nothing_is_masked() -> None:
    assert draw_keep(MaskingConfig(), 2, (4, 4), torch.Generator()) is None


def test_bypassing_is_asked_for_by_two_blocks() -> None:
    assert MaskingConfig(ratio=0.5).bypass is None
    assert MaskingConfig(ratio=0.5, bypass_from=2, bypass_to=7).bypass == (2, 7)
    assert MaskingConfig(ratio=0.5, bypass_to=7).bypass == (0, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratio": 1.0}, "ratio is 1.0; it must be at least 0 and under 1"),
        ({"kind": "blocks"}, "kind is 'blocks'; it must be one of random, groups"),
        ({"group_size": 0}, "group_size is 0"),
        ({"bypass_from": 3, "bypass_to": 3}, "bypass_from is 3 and bypass_to 3"),
        ({"bypass_from": 3}, "bypass_from is 3 and bypass_to 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskingConfig(**change)


def test_only_the_values_of_kept_patches_are_left() -> None:
    x, keep = torch.randn(2, 3, 8, 12), torch.tensor([[5, 0], [3, 2]])
    kept = only_kept(x, keep, 4)
    for picture in range(2):
        for place, token in enumerate(keep[picture].tolist()):
            row, column = token // 3 * 4, token % 3 * 4
            patch = x[picture, :, row : row + 4, column : column + 4]
            assert torch.equal(kept[picture, place], patch.permute(1, 2, 0).flatten())


def test_sparse_tokens_stay_the_same_share_of_the_kept() -> None:
    assert grid_among_kept((8, 8), (16, 16), 64) == (4, 4)
    assert grid_among_kept((8, 8), (16, 16), 256) == (8, 8)
    assert grid_among_kept((16, 16), (16, 16), 64) == (16, 16)
    assert grid_among_kept(None, (16, 16), 64) is None
