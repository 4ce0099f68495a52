"""Create with a model that draws by class labels: a choice of class takes the prompt's place."""

import html
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mezzotint.worker.client import Client
from mezzotint.worker.views import JobView

Draw = Callable[..., JobView]


@pytest.fixture
def classes(class_model: Path, tmp_path: Path) -> str:
    """The name of a model of the person's own that draws by class labels."""
    shutil.copytree(class_model, tmp_path / "own-models" / "classes")
    return "classes"


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def shown(page: AppTest, css_class: str) -> list[str]:
    pattern = rf'<p class="[^"]*\b{css_class}\b[^"]*"[^>]*>(.*?)</p>'
    bodies = [element.value for element in page.get("html")]
    return [html.unescape(found) for body in bodies for found in re.findall(pattern, body, re.DOTALL)]


def test_a_class_is_chosen_and_queued_without_a_prompt(
    classes: str, page: AppTest, client: Client, draw: Draw, model: str
) -> None:
    page.text_area(key="prompt").input("two birds")
    page.selectbox(key="model").select(classes).run()
    assert [area.key for area in page.text_area] == []
    assert not page.exception
    assert shown(page, "mz-complaint") == []
    assert "of work" in shown(page, "mz-cost")[0]
    page.selectbox(key="class_label").select("golden retriever")
    page.number_input(key="num_inference_steps").set_value(3)
    press(page, "Generate")
    (job,) = client.list().jobs
    assert (job.request["class_label"], job.request["prompt"], job.request["width"]) == ("golden retriever", None, 16)
    assert shown(page, "mz-words") == ["golden retriever"]
    draw(job)
    page.run()
    assert page.selectbox(key="class_label").value == "golden retriever"

    page.selectbox(key="model").select(model).run()
    assert "class_label" not in {box.key for box in page.selectbox}
    assert shown(page, "mz-complaint") == []
    page.text_area(key="prompt").input("a tree")
    press(page, "Generate")
    assert client.list().jobs[0].request["class_label"] is None


@pytest.mark.parametrize(("asked", "title", "offered"), [(517, "class 517", 517), ("TENCH", "TENCH", "tench")])
def test_settings_of_a_job_bring_its_class(
    classes: str, page: AppTest, client: Client, draw: Draw, asked: int | str, title: str, offered: int | str
) -> None:
    job = draw(client.submit({"model": classes, "num_inference_steps": 2, "seed": 1, "class_label": asked}))
    page.query_params["job"] = job.id
    page.run()
    assert shown(page, "mz-words") == [title]
    press(page, "Use these settings")
    assert page.selectbox(key="class_label").value == offered
    assert not page.exception
