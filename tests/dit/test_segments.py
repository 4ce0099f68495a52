"""Pooling, spreading and merging tokens, and the blocks that change density, each against something plainer."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.dit.adaln_blocks import AdaLNBlock
from mezzotint.dit.attention import MeanAttention
from mezzotint.dit.block_order import run_segments
from mezzotint.dit.density import cell_bounds
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.recut import slices
from mezzotint.dit.segment_layout import Role, SegmentLayout
from mezzotint.dit.segments import Merge, TokenGrids, average_cells, spread_cells
from mezzotint.dit.surroundings import Surroundings

SHAPE = ClassDiTConfig(sample_size=16, hidden_size=24, num_layers=1, num_heads=2)
GRIDS = [((8, 8), (3, 3)), ((8, 8), (4, 4)), ((6, 10), (5, 4)), ((7, 5), (7, 2)), ((4, 9), (1, 1))]


@pytest.mark.parametrize(("full", "sparse"), GRIDS)
def test_a_sparse_token_is_the_mean_of_its_cell(full: tuple[int, int], sparse: tuple[int, int]) -> None:
    tokens = torch.randn(2, full[0] * full[1], 5, dtype=torch.float64)
    picture = tokens.view(2, *full, 5)
    cells = [
        picture[:, top:bottom, left:right].mean(dim=(1, 2))
        for top, bottom in cell_bounds(full[0], sparse[0]) for left, right in cell_bounds(full[1], sparse[1])
    ]
    torch.testing.assert_close(average_cells(tokens, full, sparse), torch.stack(cells, dim=1))


@pytest.mark.parametrize(("full", "sparse"), GRIDS)
def test_spreading_takes_the_nearest_cell(full: tuple[int, int], sparse: tuple[int, int]) -> None:
    cells = torch.randn(2, sparse[0] * sparse[1], 5)
    picture = cells.transpose(1, 2).unflatten(2, sparse)
    expected = F.interpolate(picture, full, mode="nearest").flatten(2).transpose(1, 2)
    assert torch.equal(spread_cells(cells, sparse, full), expected)


def test_whole_tokens_are_neither_pooled_nor_spread() -> None:
    grids = TokenGrids(full=(4, 6), sparse=(2, 2), whole=3)
    tokens = torch.randn(2, 27, 5)
    pooled = grids.pool(tokens)
    assert pooled.shape == (2, 7, 5)
    assert torch.equal(pooled[:, :3], tokens[:, :3])
    assert torch.equal(pooled[:, 3:], average_cells(tokens[:, 3:], (4, 6), (2, 2)))


def test_each_frame_is_pooled_and_spread_by_itself() -> None:
    grids = TokenGrids(full=(4, 6), sparse=(2, 3), frames=3)
    tokens = torch.randn(2, 3 * 24, 5)
    frames = [average_cells(frame, (4, 6), (2, 3)) for frame in tokens.split(24, dim=1)]
    assert torch.equal(grids.pool(tokens), torch.cat(frames, dim=1))
    spread = [spread_cells(frame, (2, 3), (4, 6)) for frame in frames]
    assert torch.equal(grids.spread(torch.cat(frames, dim=1)), torch.cat(spread, dim=1))


def test_positions_are_added_again_where_they_are_asked_for() -> None:
    positions = torch.randn(24, 5)
    tokens, grids = torch.randn(2, 24, 5), TokenGrids(full=(4, 6), sparse=(2, 2), positions=positions)
    torch.testing.assert_close(grids.pool(tokens), average_cells(tokens + positions, (4, 6), (2, 2)))
    merge = moved(Merge(5))
    sparse = torch.randn(2, 4, 5)
    expected = merge.from_sparse(spread_cells(sparse, (2, 2), (4, 6)) + positions) + merge.from_dense(tokens)
    torch.testing.assert_close(merge(sparse, tokens, grids), expected)


def moved(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("whole", [0, 2])
def test_merging_adds_what_was_spread_to_the_dense_tokens(whole: int) -> None:
    merge, grids = moved(Merge(5)), TokenGrids(full=(4, 6), sparse=(2, 2), whole=whole)
    sparse, dense = torch.randn(2, whole + 4, 5), torch.randn(2, whole + 24, 5)
    spread = spread_cells(sparse[:, whole:], (2, 2), (4, 6))
    merged = merge(sparse, dense, grids)
    torch.testing.assert_close(merged[:, whole:], merge.from_sparse(spread) + merge.from_dense(dense[:, whole:]))
    assert torch.equal(merged[:, :whole], sparse[:, :whole])


def test_a_new_merger_returns_the_dense_tokens() -> None:
    grids = TokenGrids(full=(4, 6), sparse=(2, 2))
    dense = torch.randn(2, 24, 5)
    assert torch.equal(Merge(5)(torch.randn(2, 4, 5), dense, grids), dense)


def test_mean_attention_is_attention_with_equal_weights() -> None:
    mean = MeanAttention(SHAPE)
    tokens = torch.randn(2, 10, 24)
    weights = torch.full((10, 10), 0.1)
    expected = mean.proj(weights @ mean.v(tokens))
    torch.testing.assert_close(mean(tokens).expand(-1, 10, -1), expected)


def recut_block(dense: AdaLNBlock, role: Role) -> AdaLNBlock:
    block = AdaLNBlock(SHAPE, role).eval()
    state = dict(part for name, tensor in dense.state_dict().items() for part in slices(name, tensor, role))
    block.load_state_dict(state, strict=False)
    return block


@pytest.mark.parametrize("role", ["generation", "recovery"])
def test_attending_to_its_own_tokens_is_self_attention(role: Role) -> None:
    dense = moved(AdaLNBlock(SHAPE)).eval()
    tokens, condition = torch.randn(2, 24, 24), torch.randn(2, 24)
    around = Surroundings(other=tokens, grids=TokenGrids(full=(4, 6), sparse=(4, 6)))
    expected = dense(tokens, condition, Surroundings())
    torch.testing.assert_close(recut_block(dense, role)(tokens, condition, around), expected, atol=1e-5, rtol=1e-5)


def test_a_pooling_block_is_a_dense_one_whose_queries_are_zero() -> None:
    dense = moved(AdaLNBlock(SHAPE)).eval()
    with torch.no_grad():
        dense.attn.qkv.weight[:24] = 0
        dense.attn.qkv.bias[:24] = 0
    tokens, condition = torch.randn(2, 24, 24), torch.randn(2, 24)
    expected = dense(tokens, condition, Surroundings())
    pooled = recut_block(dense, "pool")(tokens, condition, Surroundings())
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_blocks_run_in_order_on_the_tokens_of_their_density() -> None:
    layout = SegmentLayout(pool=1, modules=2, module=(1, 2, 1, 1), top=1)
    seen: list[tuple[int, int, int | None]] = []

    def run(index: int, tokens: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        seen.append((index, tokens.shape[1], None if other is None else other.shape[1]))
        return tokens + 1

    out = run_segments(layout.roles, torch.zeros(1, 24, 1), TokenGrids(full=(4, 6), sparse=(2, 2)), run)
    tokens: Sequence[tuple[int, int | None]] = [
        (24, None), (4, 24), (4, None), (4, None), (24, 4), (24, None), (4, 24), (4, None), (4, None), (24, 4),
        (24, None), (24, None),
    ]
    assert seen == [(index, *shapes) for index, shapes in enumerate(tokens)]
    # The dense tokens pass the pooling, recovery, dense and top blocks only.
    assert out.unique().tolist() == [6]
