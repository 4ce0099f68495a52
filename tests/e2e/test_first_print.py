"""The first thing that works end to end: a prompt typed in a browser, a picture by the shipped model."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from mezzotint.sampling.media import read_metadata

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

DRAWN_MS = 300_000
"""How long the picture may take on a machine that does other work; alone it takes seconds."""


def test_a_red_apple_typed_in_a_browser_comes_back_as_a_picture(
    make_up: Callable[..., Any], visit: Callable[..., Page]
) -> None:
    page = visit(make_up().url)
    page.get_by_label("Prompt").click()
    page.keyboard.type("a red apple")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".mz-words")).to_have_text("a red apple")
    expect(page.locator(".mz-state")).to_contain_text("Done in", timeout=DRAWN_MS)
    shown = page.locator("[class*='st-key-plate-']").get_by_alt_text("Picture 1: a red apple")
    expect(shown).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    with Image.open(io.BytesIO(Path(download.value.path()).read_bytes())) as picture:
        metadata = read_metadata(picture)
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    assert metadata is not None
    assert metadata["request"]["prompt"] == "a red apple"
    assert metadata["request"]["model"] == "emoji-256"
    assert pixels.shape == (256, 256, 3)
    assert _spread(pixels) > 20
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 256]
    with Image.open(io.BytesIO(shown.screenshot())) as seen:
        assert _spread(np.asarray(seen.convert("RGB"), dtype=float)) > 20
    _is_red_in_the_middle(pixels)


def _spread(pixels: np.ndarray) -> float:
    """Standard deviation of the values (0 to 255); 0 for a uniform picture."""
    return float(pixels.std())


def _is_red_in_the_middle(pixels: np.ndarray) -> None:
    red, green, blue = pixels[80:176, 80:176].mean(axis=(0, 1))
    assert red > max(green, blue) + 30, f"the middle is not red: {red:.0f}, {green:.0f}, {blue:.0f}"
