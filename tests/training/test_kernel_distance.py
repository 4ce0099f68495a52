"""The kernel distance against its definition written out, and on distributions whose distance is known."""

import itertools

import pytest
import torch
from torch import Tensor

from mezzotint.training.kernel_distance import kernel_distance
from mezzotint.training.reference import first_of_each, load_reference


def numbers(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def written_out(drawn: Tensor, real: Tensor) -> float:
    """Mean kernel over different pictures within each set, less twice that between them (equation 4 of the paper)."""

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(rows: list[list[float]]) -> float:
        pairs = list(itertools.permutations(rows, 2))
        return sum(kernel(x, y) for x, y in pairs) / len(pairs)

    one, other = drawn.tolist(), real.tolist()
    between = sum(kernel(x, y) for x in one for y in other) / (len(one) * len(other))
    return within(one) + within(other) - 2 * between


@pytest.mark.parametrize(("drawn", "real"), [(2, 2), (5, 9), (12, 3)])
def test_it_is_the_mean_over_all_pairs(drawn: int, real: int) -> None:
    one, other = numbers(drawn, 4), numbers(real, 4, seed=1, shift=0.5)
    assert kernel_distance(one, other).value == pytest.approx(written_out(one, other), rel=1e-9)
    assert kernel_distance(other, one).value == pytest.approx(written_out(one, other), rel=1e-9)


def test_two_heaps_far_from_each_other_leave_no_doubt() -> None:
    """Whatever is drawn of a heap is the same again, so every resample has the distance of all."""
    drawn, real = 1 + 1e-4 * numbers(4, 3), 1e-4 * numbers(5, 3, seed=1) - 1
    measured = kernel_distance(drawn, real)
    assert measured.value == pytest.approx((1 + 1) ** 3 + (1 + 1) ** 3 - 2 * (-1 + 1) ** 3, rel=1e-2)
    assert (measured.low, measured.high) == pytest.approx((measured.value, measured.value), rel=1e-2)


def test_far_from_0_the_interval_is_no_wider() -> None:
    """There the kernel is large, and nearly the same for all pairs."""
    drawn, real = (3 + 0.01 * numbers(10, 4, seed=seed) for seed in (0, 1))
    measured = kernel_distance(drawn, real)
    assert measured.value == pytest.approx(written_out(drawn, real), abs=1e-9)
    assert measured.low < measured.value < measured.high
    assert measured.high - measured.low < 0.1


def signs(count: int, seed: int) -> Tensor:
    """-1 or 1: moments 0, 1, 0."""
    return torch.randint(2, (count, 1), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def switches(count: int, seed: int) -> Tensor:
    """0 or 1: moments 1/2, 1/2, 1/2."""
    return torch.randint(2, (count, 1), generator=torch.Generator().manual_seed(seed)).double()


KNOWN = 3 * 0.5**2 + 3 * 0.5**2 + 0.5**2
"""(xy + 1)^3 = x^3 y^3 + 3 x^2 y^2 + 3 xy + 1, so the distance is the squared differences of moments, weighted so."""


def test_two_known_distributions_are_as_far_apart_as_they_are() -> None:
    measured = kernel_distance(signs(4000, 0), switches(4000, 1), num_resamples=200)
    assert measured.value == pytest.approx(KNOWN, rel=0.05)
    assert measured.low < KNOWN < measured.high
    assert measured.high - measured.low < 0.3


def test_it_has_no_bias_for_any_number_of_pictures() -> None:
    for count, expected in ((3, KNOWN), (20, KNOWN)):
        seeds = range(0, 8000 // count, 2)
        found = [kernel_distance(signs(count, seed), switches(count, seed + 1), 1).value for seed in seeds]
        error = torch.tensor(found).std() / len(found) ** 0.5
        assert torch.tensor(found).mean() == pytest.approx(expected, abs=4 * float(error))
    same = torch.tensor([kernel_distance(signs(5, 2 * i), signs(5, 2 * i + 1), 1).value for i in range(800)])
    assert same.mean().abs() < 4 * same.std() / 800**0.5
    assert same.min() < 0


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    found = [kernel_distance(signs(60, 2 * i), switches(60, 2 * i + 1), 300) for i in range(100)]
    assert 86 <= sum(one.low <= KNOWN <= one.high for one in found) <= 99


def test_the_interval_is_as_wide_as_the_scores_of_other_pictures_scatter() -> None:
    found = [kernel_distance(signs(60, 2 * i), switches(60, 2 * i + 1), 300) for i in range(200)]
    scatter = torch.tensor([one.value for one in found]).quantile(torch.tensor([0.025, 0.975]))
    widths = torch.tensor([one.high - one.low for one in found])
    assert float(widths.mean()) == pytest.approx(float(scatter[1] - scatter[0]), rel=0.2)


def test_the_same_pictures_get_the_same_score_again() -> None:
    assert kernel_distance(numbers(9, 4), numbers(8, 4)) == kernel_distance(numbers(9, 4), numbers(8, 4))


def test_blurred_pictures_are_further_from_real_ones_than_these_are_from_each_other() -> None:
    reference = load_reference()
    real = reference.features_GF[first_of_each(reference.labels)]
    among = kernel_distance(real[::2], real[1::2])
    blurred = kernel_distance(reference.blurred_DF[::2], real[1::2])
    assert abs(among.value) < 0.1 * blurred.value
    assert among.high < blurred.low


@pytest.mark.parametrize(("drawn", "real", "words"), [
    (torch.zeros(1, 4), torch.zeros(3, 4), r"drawn has shape \(1, 4\); it must be .* two or more"),
    (torch.zeros(3, 4), torch.zeros(4), r"real has shape \(4,\)"),
    (torch.zeros(3, 4), torch.zeros(3, 5), "drawn has features of size 4 and real of 5"),
])
def test_what_cannot_be_compared_is_refused(drawn: Tensor, real: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kernel_distance(drawn, real)
