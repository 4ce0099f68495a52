"""Rotary positions on a grid: what attention sees must depend on differences of rows and columns alone."""

import pytest
import torch

from mezzotint.dit.positions import apply_rope, rope_table


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
