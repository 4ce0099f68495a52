import numpy as np
import pytest
from PIL import Image, ImageFont

from mezzotint.training.picture_grid import picture_grid, wrap

COLOURS = ["red", "lime", "blue", "yellow", "cyan"]


def solid(colour: str, size: tuple[int, int] = (50, 50)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_pictures_stand_in_rows_from_left_to_right() -> None:
    sheet = picture_grid([solid(c) for c in COLOURS], columns=3, tile=32)
    pitch, middle = 38, 6 + 16
    seen = [sheet.getpixel((middle + i % 3 * pitch, middle + i // 3 * pitch)) for i in range(6)]
    expected = [solid(c).getpixel((0, 0)) for c in [*COLOURS, "white"]]
    assert seen == expected


def test_a_wide_picture_keeps_its_shape() -> None:
    pixels = np.asarray(picture_grid([solid("red", (100, 50))], tile=100))
    red = (pixels == (255, 0, 0)).all(axis=-1)
    assert red.any(axis=1).sum() == 50
    assert red.any(axis=0).sum() == 100


def test_a_caption_is_drawn_under_its_picture_and_not_over_the_next_one() -> None:
    images = [solid("red"), solid("lime")]
    bare = picture_grid(images, tile=64, captions=["", ""])
    captioned = picture_grid(images, tile=64, captions=["woman firefighter medium-dark", ""])
    changed = np.argwhere((np.asarray(bare) != np.asarray(captioned)).any(axis=-1))
    assert len(changed) > 20
    assert changed[:, 0].min() >= 6 + 64
    assert changed[:, 1].max() < 6 + 64 + 6


def test_no_line_of_a_caption_is_wider_than_its_tile() -> None:
    font = ImageFont.load_default(12)
    for text in ("a red apple", "Antidisestablishmentarianism", "flag of a far away country with a name"):
        lines = wrap(text, font, 70)
        assert 1 <= len(lines) <= 2
        assert all(font.getlength(line) <= 70 for line in lines)


def test_a_caption_that_fits_is_shown_whole_and_a_cut_one_says_so() -> None:
    font = ImageFont.load_default(12)
    assert " ".join(wrap("a red apple on a plate", font, 90)) == "a red apple on a plate"
    assert wrap("one two three four five six seven eight", font, 60)[-1].endswith("…")


def test_a_sheet_that_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        picture_grid([])
    with pytest.raises(ValueError, match="2 texts for 1 images"):
        picture_grid([solid("red")], captions=["a", "b"])
    with pytest.raises(ValueError, match="columns is 0"):
        picture_grid([solid("red")], columns=0)
