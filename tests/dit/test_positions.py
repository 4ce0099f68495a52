"""Rotary positions on a grid: what attention sees must depend on differences of rows and columns alone."""

import math

import pytest
import torch

from mezzotint.dit.positions import apply_rope, place_table, rope_table


def turned(x: torch.Tensor, grid: tuple[int, int], text: int = 0) -> torch.Tensor:
    return apply_rope(x, *rope_table(grid, x.shape[-1], 100.0, text))


def test_scores_depend_only_on_the_offset_between_two_tokens() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 16).double()
    grid = (6, 9)
    q_all, k_all = turned(q.expand(54, -1), grid), turned(k.expand(54, -1), grid)
    scores = (q_all @ k_all.T).view(6, 9, 6, 9)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[3, 5, 5, 8], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[4, 4, 1, 0], scores[5, 8, 2, 4], atol=1e-5, rtol=0)
    assert abs(scores[0, 0, 2, 3] - scores[0, 0, 3, 2]) > 1e-3  # rows and columns are told apart


def test_turning_keeps_lengths() -> None:
    x = torch.randn(20, 32)
    torch.testing.assert_close(turned(x, (4, 5)).norm(dim=1), x.norm(dim=1))


def test_text_tokens_in_front_are_not_turned() -> None:
    x = torch.randn(3 + 4, 8)
    out = turned(x, (2, 2), text=3)
    torch.testing.assert_close(out[:3], x[:3])
    torch.testing.assert_close(out[3:], turned(x[3:], (2, 2)))


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 2)])
def test_the_angles_are_those_of_the_formula(grid: tuple[int, int]) -> None:
    head_dim, theta = 8, 100.0
    cos, sin = rope_table(grid, head_dim, theta)
    for n in range(grid[0] * grid[1]):
        row, column = divmod(n, grid[1])
        angles = [row * theta ** -(f / 2) for f in range(2)] + [column * theta ** -(f / 2) for f in range(2)]
        expected = torch.tensor(angles * 2)
        torch.testing.assert_close(cos[n], expected.cos(), atol=1e-6, rtol=0)
        torch.testing.assert_close(sin[n], expected.sin(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(1, 1), (3, 8), (20, 33)])
def test_each_place_has_its_own_features_counted_from_the_centre(grid: tuple[int, int]) -> None:
    rows, columns = grid
    table = place_table(grid)
    assert table.shape == (rows * columns, 64)
    distances = torch.cdist(table.double(), table.double()) + 9 * torch.eye(rows * columns)
    assert distances.min() > 0.1
    larger = place_table((rows + 2, columns + 4)).view(rows + 2, columns + 4, 64)
    torch.testing.assert_close(larger[1:-1, 2:-2].reshape(-1, 64), table, atol=1e-5, rtol=0)
    for n in range(0, rows * columns, 7):
        row, column = n // columns - (rows - 1) / 2, n % columns - (columns - 1) / 2
        angles = [place * math.pi * 64.0 ** (-k / 15) for place in (row, column) for k in range(16)]
        wanted = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[n].tolist() == pytest.approx(wanted, abs=1e-5)
