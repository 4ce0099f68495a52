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
    _is_a_picture(pixels)
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 256]
    with Image.open(io.BytesIO(shown.screenshot())) as seen:
        _is_a_picture(np.asarray(seen.convert("RGB"), dtype=float))


def _is_a_picture(pixels: np.ndarray) -> None:
    """Neither uniform nor noise: the values (0 to 255) spread widely, and neighbours are much alike."""
    spread = float(pixels.std())
    assert spread > 10, f"the picture is nearly uniform: its values spread by {spread:.1f}"
    step = float(np.abs(np.diff(pixels, axis=1)).mean())
    assert step < spread / 4, f"the picture is noise: neighbours differ by {step:.1f} of {spread:.1f}"
