"""The page in a browser, with everything behind it real but the network: the null engine draws slowly."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from mezzotint.sampling.media import read_metadata

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEP_S = 0.2
LONG = 150
"""Steps that outlast any test here."""


@pytest.fixture(scope="module")
def up(make_up: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The service with an engine that takes STEP_S a step."""
    model = tmp_path_factory.mktemp("model")
    (model / "transformer").mkdir()
    (model / "model_index.json").write_text(json.dumps({"guidance_scale": 3.0}))
    (model / "transformer" / "config.json").write_text(json.dumps({"sample_size": 64, "patch_size": 32}))
    return make_up(MEZZOTINT_ENGINE="null", MEZZOTINT_NULL_STEP_S=str(STEP_S), MEZZOTINT_MODEL=str(model))


@pytest.fixture
def page(up: Any, visit: Callable[..., Page]) -> Page:
    """The page as opened anew."""
    return visit(up.url)


def fill(page: Page, label: str, value: object) -> None:
    """Type a number into a field and leave it."""
    field = page.get_by_label(label, exact=True)
    field.fill(str(value))
    field.press("Tab")


def ask(page: Page, prompt: str, steps: int | None = None) -> None:
    """Type a prompt on the keyboard, press Generate, and wait for its card."""
    if steps is not None:
        fill(page, "Steps", steps)
        expect(page.locator(".mz-cost")).to_contain_text("of work")
    page.get_by_label("Prompt", exact=True).click()
    page.keyboard.press("Control+a")
    page.keyboard.type(prompt)
    page.get_by_role("button", name="Generate").click()
    on_card(page, prompt)


def on_card(page: Page, prompt: str) -> None:
    """Wait until the card shows the job of a prompt, and that alone."""
    expect(page.locator(".mz-words", has_text=prompt)).to_be_visible()
    expect(page.locator(".mz-words")).to_have_count(1)


def state(page: Page) -> Locator:
    """What the card says of its job."""
    return page.locator(".mz-state")


def plate(page: Page) -> Locator:
    """The place of the picture."""
    return page.locator("[class*='st-key-plate-']").first


def cancel(page: Page) -> None:
    page.get_by_role("button", name="Cancel").click()
    expect(state(page)).to_have_text("Cancelled")


def step(page: Page) -> int:
    """The step that the card shows, 0 before the first."""
    found = re.search(r"Step (\d+) of", state(page).inner_text())
    return int(found[1]) if found else 0


def test_progress_moves_with_a_preview_and_the_picture_comes_without_a_jump(page: Page) -> None:
    missing: list[str] = []
    page.on("response", lambda response: missing.append(response.url) if response.status >= 400 else None)
    ask(page, "a slow disc", steps=20)
    expect(state(page)).to_contain_text("Step ")
    expect(plate(page).get_by_alt_text("Preview: a slow disc")).to_be_visible()
    first, place = step(page), plate(page).bounding_box()
    page.wait_for_timeout(2000)
    assert first < step(page) < 20
    assert plate(page).bounding_box() == place
    expect(state(page)).to_contain_text("Done in")
    picture = plate(page).get_by_alt_text("Picture 1: a slow disc")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 64
    assert plate(page).bounding_box() == place
    assert missing == []


def test_a_reload_keeps_the_card_and_a_second_device_shows_the_same(
    page: Page, up: Any, visit: Callable[..., Page]
) -> None:
    ask(page, "keep me", steps=LONG)
    expect(state(page)).to_contain_text("Step ")
    before = step(page)
    page.reload()
    on_card(page, "keep me")
    expect(state(page)).to_contain_text("Step ")
    assert step(page) >= before
    second = visit(up.url)
    on_card(second, "keep me")
    expect(state(second)).to_contain_text("Step ")
    cancel(second)
    expect(state(page)).to_have_text("Cancelled")


def test_cancel_stops_a_running_job_and_it_can_be_tried_again(page: Page) -> None:
    ask(page, "stop me", steps=LONG)
    expect(state(page)).to_contain_text("Step ")
    cancel(page)
    address = page.url
    page.get_by_role("button", name="Try again").click()
    expect(state(page)).to_contain_text("Step ")
    assert page.url != address
    cancel(page)


def test_bad_input_is_told_in_a_sentence_beside_its_field(page: Page) -> None:
    fill(page, "Steps", 10**9)
    told = page.get_by_text("Steps is 1000000000; it must be a whole number from 1 to 250.")
    expect(told).to_be_visible()
    field, next_field = page.get_by_label("Steps", exact=True), page.get_by_label("Seed", exact=True)
    assert _top(field) < _top(told) < _top(next_field)
    page.get_by_role("button", name="Generate").click()
    empty = page.get_by_text("Prompt is empty; say in a few words what to draw.")
    expect(empty).to_be_visible()
    prompt, generate = page.get_by_label("Prompt", exact=True), page.get_by_role("button", name="Generate")
    assert _top(prompt) < _top(empty) < _top(generate)
    assert "job=" not in page.url


def _top(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["y"]


def test_two_jobs_can_wait_and_a_waiting_one_knows_its_place(page: Page) -> None:
    ask(page, "the first", steps=LONG)
    expect(state(page)).to_contain_text("Step ")
    ask(page, "the second", steps=3)
    expect(state(page)).to_have_text("Next in line")
    ask(page, "the third", steps=2)
    expect(state(page)).to_have_text("In line, 1 ahead")
    page.get_by_role("button", name="Open the first").click()
    on_card(page, "the first")
    cancel(page)
    for name in ("the second", "the third"):
        page.get_by_role("button", name=f"Open {name}").click()
        on_card(page, name)
        expect(state(page)).to_contain_text("Done in")


def test_the_page_is_quiet_when_no_job_is_active(up: Any, visit: Callable[..., Page]) -> None:
    page = visit("about:blank")
    frames: list[object] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame)))
    page.goto(up.url)
    ask(page, "soon done", steps=15)
    expect(state(page)).to_contain_text("Step ")
    seen = len(frames)
    page.wait_for_timeout(1500)
    assert len(frames) > seen, "while a job is active the page follows it"
    expect(state(page)).to_contain_text("Done in")
    page.wait_for_timeout(1500)
    seen = len(frames)
    page.wait_for_timeout(3000)
    assert len(frames) == seen


def test_the_download_is_the_original_with_its_request(page: Page) -> None:
    ask(page, "to keep <b>forever</b> :smile:", steps=2)
    expect(state(page)).to_contain_text("Done in")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    with Image.open(io.BytesIO(Path(download.value.path()).read_bytes())) as picture:
        metadata = read_metadata(picture)
    assert metadata is not None
    assert metadata["request"]["prompt"] == "to keep <b>forever</b> :smile:"
    assert page.locator(".mz-words b").count() == 0


def test_on_a_phone_the_picture_comes_before_the_settings_and_nothing_is_cut_off(
    up: Any, visit: Callable[..., Page]
) -> None:
    page = visit(up.url, width=390, height=844)
    ask(page, "on a phone", steps=2)
    expect(state(page)).to_contain_text("Done in")
    tops = [
        _top(element)
        for element in (page.get_by_role("button", name="Generate"), plate(page), page.get_by_label("Width"))
    ]
    assert tops == sorted(tops)
    place = plate(page).bounding_box()
    assert place is not None
    assert place["y"] + place["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_history_survives_a_restart_and_opens_a_job(up: Any, page: Page, visit: Callable[..., Page]) -> None:
    ask(page, "before the restart", steps=2)
    expect(state(page)).to_contain_text("Done in")
    address = page.url
    up.stop()
    assert not up.answers()
    up.start()
    history = visit(f"{up.url}/history")
    thumbnail = history.get_by_alt_text("Picture 1: before the restart")
    expect(thumbnail).to_be_visible()
    history.get_by_role("button", name="Open before the restart").click()
    on_card(history, "before the restart")
    expect(state(history)).to_contain_text("Done in")
    assert history.url == address
