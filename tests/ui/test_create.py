"""Create: what a person does on the page, and what the job table then holds."""

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from mezzotint.sampling.engine import Drawn
from mezzotint.sampling.intake import accept
from mezzotint.ui import words
from mezzotint.ui.launch import APP
from mezzotint.worker.client import Client
from mezzotint.worker.views import JobView

Draw = Callable[..., JobView]


class FullEngine:
    """An engine on a machine that is too small."""

    def draw(self, *args: Any, **kwargs: Any) -> Drawn:
        raise MemoryError("the picture needs 3 GiB; lower width, height or num_images.")


def press(page: AppTest, label: str) -> AppTest:
    """Click the one button with this label."""
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def ask(page: AppTest, prompt: str, **settings: Any) -> AppTest:
    """Type a prompt and settings and press Generate."""
    for field, value in settings.items():
        page.number_input(key=field).set_value(value)
    page.text_area(key="prompt").input(prompt)
    return press(page, "Generate")


def shown(page: AppTest, css_class: str) -> list[str]:
    """The texts on the page of one kind, as a person reads them."""
    pattern = rf'<p class="[^"]*\b{css_class}\b[^"]*"[^>]*>(.*?)</p>'
    bodies = [element.value for element in page.get("html")]
    return [html.unescape(found) for body in bodies for found in re.findall(pattern, body, re.DOTALL)]


def test_one_click_on_an_example_asks_for_that_picture(page: AppTest, client: Client) -> None:
    assert "Nothing drawn yet" in shown(page, "mz-words")
    press(page, "a red apple")
    (job,) = client.list().jobs
    assert job.request["prompt"] == "a red apple"
    assert page.text_area(key="prompt").value == "a red apple"


def test_what_was_typed_is_what_is_queued(page: AppTest, client: Client, model: str) -> None:
    settings = {
        "width": 128, "height": 96, "num_inference_steps": 7, "guidance_scale": 1.5, "seed": 41,
        "num_images": 3,
    }
    ask(page, "two birds", **settings)
    (job,) = client.list().jobs
    expected = {"prompt": "two birds", "model": model} | settings
    assert {field: job.request[field] for field in expected} == expected
    assert page.query_params["job"] == job.id


def test_generate_can_be_pressed_again_while_a_job_waits(page: AppTest, client: Client) -> None:
    ask(page, "first")
    ask(page, "second")
    assert [job.request["prompt"] for job in client.list().jobs] == ["second", "first"]
    assert all(not button.disabled for button in page.button)


def test_an_empty_prompt_is_refused_beside_it_and_nothing_is_queued(page: AppTest, client: Client) -> None:
    ask(page, "   ")
    assert shown(page, "mz-complaint") == ["Prompt is empty; say in a few words what to draw."]
    assert client.list().jobs == []
    ask(page, "a tree")
    assert shown(page, "mz-complaint") == []
    assert len(client.list().jobs) == 1


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("width", 100, "Width is 100; for small-model it must be a multiple of 32, such as 96 or 128."),
        ("height", 0, "Height is 0; it must be a whole number from 1 to 1024."),
        ("num_inference_steps", 10**9, "Steps is 1000000000; it must be a whole number from 1 to 250."),
        ("guidance_scale", -1.0, "Guidance is -1.0; it must be a number from 0 to 30."),
        ("seed", -5, "Seed is -5; it must be a whole number from 0 to 4294967279."),
        ("num_images", 17, "Pictures is 17; it must be a whole number from 1 to 16."),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_sentence(
    page: AppTest, client: Client, model: str, field: str, value: float, sentence: str
) -> None:
    ask(page, "a tree", **{field: value})
    assert [said.replace(model, "small-model") for said in shown(page, "mz-complaint")] == [sentence]
    assert client.list().jobs == []


def test_every_wrong_setting_is_named_at_once(page: AppTest) -> None:
    page.number_input(key="width").set_value(100)
    page.number_input(key="num_images").set_value(0).run()
    assert [said.split()[0] for said in shown(page, "mz-complaint")] == ["Width", "Pictures"]
    assert shown(page, "mz-cost") == ["Correct Width and Pictures to see the cost."]


def test_a_prompt_with_markup_is_shown_as_it_was_typed(page: AppTest, draw: Draw, client: Client) -> None:
    prompt = "<script>alert(1)</script> **bold** :red[x] $y$ ![a](b)"
    ask(page, prompt)
    draw(client.list().jobs[0])
    page.run()
    assert prompt in shown(page, "mz-words")
    assert not any("<script" in element.value for element in page.get("html"))
    labels = [button.label for button in page.button]
    assert "Open script alert 1 script bold red x y a b" in labels
    assert not any(set("<*:$[") & set(label) for label in labels)
    assert len(page.markdown) == 0


def test_the_cost_is_that_of_the_plan_and_follows_the_settings(page: AppTest, model: str) -> None:
    request = {"prompt": "x", "model": model, "num_inference_steps": 9, "width": 128, "num_images": 2}
    page.number_input(key="width").set_value(128)
    page.number_input(key="num_images").set_value(2)
    page.number_input(key="num_inference_steps").set_value(9).run()
    assert shown(page, "mz-cost") == [f"{words.work(accept(request)[1].flops)} of work"]


def test_a_job_in_the_address_is_shown_with_its_settings(client: Client, draw: Draw, page: AppTest) -> None:
    request = {"prompt": "old one", "model": _model(page), "num_inference_steps": 6, "seed": 12}
    old = draw(client.submit(request))
    draw(client.submit(request | {"prompt": "newer one"}))
    fresh = AppTest.from_file(page._script_path, default_timeout=30)
    fresh.query_params["job"] = old.id
    fresh.run()
    assert shown(fresh, "mz-words") == ["old one"]
    assert fresh.text_area(key="prompt").value == "old one"
    assert fresh.number_input(key="num_inference_steps").value == 6
    assert fresh.number_input(key="seed").value is None


def _model(page: AppTest) -> str:
    return str(page.session_state["model"])


def test_an_unknown_job_in_the_address_is_said_and_the_page_goes_on(client: Client, page: AppTest) -> None:
    job = client.submit({"prompt": "known", "model": _model(page)})
    page.query_params["job"] = "no-such-job"
    page.run()
    assert any("no-such-job" in said for said in shown(page, "mz-complaint"))
    assert job.request["prompt"] in shown(page, "mz-words")


def test_two_sessions_show_the_same_job(page: AppTest) -> None:
    ask(page, "seen twice")
    second = AppTest.from_file(page._script_path, default_timeout=30).run()
    assert shown(second, "mz-words") == ["seen twice"]
    assert shown(second, "mz-state") == shown(page, "mz-state") == ["Next in line"]


def test_cancel_ends_a_waiting_job(page: AppTest, client: Client) -> None:
    ask(page, "never mind")
    press(page, "Cancel")
    assert client.list().jobs[0].state == "cancelled"
    assert shown(page, "mz-state") == ["Cancelled"]
    assert not [button for button in page.button if button.label == "Cancel"]


def test_a_job_that_waits_without_a_worker_says_what_to_start(page: AppTest) -> None:
    ask(page, "waiting")
    assert any("mezzotint worker" in said for said in shown(page, "mz-note"))


def test_a_finished_job_shows_its_picture_and_offers_its_file(
    page: AppTest, client: Client, draw: Draw
) -> None:
    ask(page, "a disc", seed=7)
    draw(client.list().jobs[0])
    page.run()
    assert shown(page, "mz-state")[0].startswith("Done in")
    (picture, thumbnail) = page.image
    assert picture.proto.imgs[0].alt == thumbnail.proto.imgs[0].alt == "Picture 1: a disc"
    (download,) = page.get("download_button")
    assert download.label == "Download PNG"


def test_each_of_several_pictures_can_be_fetched(page: AppTest, client: Client, draw: Draw) -> None:
    ask(page, "a disc", seed=7, num_images=3)
    draw(client.list().jobs[0])
    page.run()
    labels = [download.label for download in page.get("download_button")]
    assert labels == ["Picture 1, seed 7", "Picture 2, seed 8", "Picture 3, seed 9"]


def test_a_failure_is_told_in_words_and_can_be_tried_again(page: AppTest, client: Client, draw: Draw) -> None:
    ask(page, "too much", seed=3)
    draw(client.list().jobs[0], FullEngine())
    page.run()
    assert shown(page, "mz-state") == ["Failed"]
    assert shown(page, "mz-complaint") == ["The picture needs 3 GiB; lower width, height or pictures."]
    press(page, "Try again")
    newest, failed = client.list().jobs
    assert newest.request == failed.request
    assert newest.state == "queued"


def test_new_seed_asks_for_the_same_with_another_seed(page: AppTest, client: Client, draw: Draw) -> None:
    ask(page, "a disc", seed=3, num_inference_steps=5)
    draw(client.list().jobs[0])
    page.run()
    press(page, "New seed")
    newest, first = client.list().jobs
    assert newest.request["seed"] != first.request["seed"]
    assert newest.request | {"seed": 3} == first.request


def test_use_these_settings_fills_the_composer_in(page: AppTest, client: Client) -> None:
    ask(page, "first", seed=77, num_inference_steps=6, width=128)
    ask(page, "second", seed=78, num_inference_steps=4, width=64)
    press(page, "Open first")
    press(page, "Use these settings")
    assert page.text_area(key="prompt").value == "first"
    fields = ("seed", "num_inference_steps", "width", "height")
    assert [page.number_input(key=field).value for field in fields] == [77, 6, 128, 64]
    assert len(client.list().jobs) == 2


def test_choosing_another_model_brings_its_size_and_steps(
    larger_model: str, page: AppTest, client: Client
) -> None:
    page.number_input(key="num_images").set_value(2).run()
    page.selectbox(key="model").select(larger_model).run()
    assert [page.number_input(key=field).value for field in ("width", "height")] == [128, 128]
    ask(page, "a larger one")
    (job,) = client.list().jobs
    assert (job.model, job.request["num_inference_steps"], job.request["num_images"]) == (larger_model, 9, 2)


def test_a_model_in_segments_is_asked_for_a_density_and_others_are_not(
    cut_model: str, page: AppTest, client: Client, model: str
) -> None:
    assert "density" not in {box.key for box in page.selectbox}
    page.selectbox(key="model").select(cut_model).run()
    dear = shown(page, "mz-cost")
    assert page.selectbox(key="density").value == "full"
    page.selectbox(key="density").select("fast").run()
    assert shown(page, "mz-cost") != dear
    ask(page, "a sparse one")
    assert client.list().jobs[0].request["density"] == "fast"
    page.selectbox(key="model").select(model).run()
    assert "density" not in {box.key for box in page.selectbox}
    assert shown(page, "mz-complaint") == []
    ask(page, "a dense one")
    assert client.list().jobs[0].request["density"] == "full"


def test_settings_of_a_job_bring_its_pair_of_rates(cut_model: str, page: AppTest, client: Client, draw: Draw) -> None:
    old = draw(client.submit({"prompt": "old", "model": cut_model, "num_inference_steps": 2, "density": "0.3-0.7"}))
    page.query_params["job"] = old.id
    page.run()
    press(page, "Use these settings")
    assert page.selectbox(key="density").value == "0.3-0.7"
    ask(page, "again")
    assert client.list().jobs[0].request["density"] == "0.3-0.7"


def test_a_model_that_is_not_there_is_named_on_the_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_MODEL", "no-such-model")
    page = AppTest.from_file(str(APP), default_timeout=60).run()
    assert any("no-such-model" in said for said in shown(page, "mz-complaint"))
    assert not page.exception


def test_a_job_table_that_cannot_be_reached_is_told_in_a_sentence(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEZZOTINT_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/none")
    page = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not page.exception
    assert shown(page, "mz-complaint")
    assert all(said.endswith(".") for said in shown(page, "mz-complaint"))
