"""History: pages of everything drawn."""

import pytest
from streamlit.testing.v1 import AppTest

from mezzotint.ui import history
from mezzotint.worker.client import Client


@pytest.fixture
def prompts(client: Client, model: str) -> list[str]:
    """More jobs than a page holds, in order of their age, the newest first."""
    written = [f"number {index}" for index in range(history.PAGE + 3)]
    for prompt in written:
        client.cancel(client.submit({"prompt": prompt, "model": model}).id)
    return written[::-1]


def open_history() -> AppTest:
    return AppTest.from_string("from mezzotint.ui import history\nhistory.show()", default_timeout=30)


def titles(page: AppTest) -> list[str]:
    """The prompts on the page in order."""
    return [button.label.removeprefix("Open ") for button in page.button if button.label.startswith("Open ")]


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def test_older_and_newest_turn_through_all_jobs(prompts: list[str]) -> None:
    page = open_history().run()
    assert titles(page) == prompts[: history.PAGE]
    press(page, "Older")
    assert titles(page) == prompts[history.PAGE :]
    press(page, "Newest")
    assert titles(page) == prompts[: history.PAGE]


def test_a_reload_shows_the_same_page_of_the_history(prompts: list[str]) -> None:
    page = press(open_history().run(), "Older")
    again = open_history()
    again.query_params[history.CURSOR] = page.query_params[history.CURSOR]
    assert titles(again.run()) == prompts[history.PAGE :]


def test_a_cursor_that_never_was_one_shows_the_newest(prompts: list[str]) -> None:
    page = open_history()
    page.query_params[history.CURSOR] = "nonsense"
    assert titles(page.run()) == prompts[: history.PAGE]
    assert not page.exception


def test_an_empty_history_says_so(client: Client) -> None:
    page = open_history().run()
    assert any("Nothing has been drawn yet." in element.value for element in page.get("html"))
