"""Distances of pairs of pictures, against values known beforehand."""

import pytest
import torch
from PIL import Image

from mezzotint.training.paired_distance import paired_distance


def plain(*colours: tuple[int, int, int], side: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), colour) for colour in colours]


def test_pictures_are_compared_with_their_own_pair() -> None:
    one, other = plain((0, 0, 0), (255, 255, 255)), plain((51, 0, 0), (255, 255, 255))
    features, turned = torch.tensor([[1.0, 0], [3, 4]]), torch.tensor([[0.0, 2], [6, 8]])
    found = paired_distance(one, other, features, turned)
    assert found.feature_distance == pytest.approx((1 + 0) / 2)
    assert found.rms_pixel_difference == pytest.approx(((0.2**2 / 3) ** 0.5 + 0) / 2)
    swapped = paired_distance(one, other[::-1], features, turned.flip(0))
    assert swapped.feature_distance == pytest.approx((1 - 0.6 + 1 - 0.8) / 2)
    assert swapped.rms_pixel_difference == pytest.approx((1 + (0.8**2 / 3 + 2 / 3) ** 0.5) / 2)


def test_one_pixel_counts_by_its_share() -> None:
    one, other = plain((0, 0, 0)), plain((0, 0, 0))
    other[0].putpixel((2, 1), (255, 255, 255))
    assert paired_distance(one, other, torch.ones(1, 2), torch.ones(1, 2)).rms_pixel_difference == pytest.approx(0.25)


def test_a_picture_is_no_way_from_itself() -> None:
    images, features = plain((1, 2, 3), (4, 5, 6)), torch.rand(2, 8)
    found = paired_distance(images, images, features, features)
    assert found.feature_distance == pytest.approx(0, abs=1e-7)
    assert found.rms_pixel_difference == 0


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 pictures with 2 and 2 features"):
        paired_distance(plain((0, 0, 0), (1, 1, 1)), plain((0, 0, 0)), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="0 and 0 pictures"):
        paired_distance([], [], torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"pictures of \(4, 4\) and \(5, 5\) pixels"):
        paired_distance(plain((0, 0, 0)), plain((0, 0, 0), side=5), torch.ones(1, 3), torch.ones(1, 3))
