"""States, costs and times in words."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.ui import words
from mezzotint.worker.views import JobView

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def job(**fields: Any) -> JobView:
    known = {
        "id": "j", "owner": "local", "state": "queued", "attempt": 0, "request": {"prompt": "x"},
        "num_steps": 25, "model": "m", "created_at": NOW,
    }
    return JobView(**(known | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"place": 1}, "Next in line"),
        ({"place": 3}, "In line, 2 ahead"),
        ({"place": 1, "attempt": 1}, "Next in line, attempt 2"),
        ({"place": 1, "cancel_requested": True}, "Stopping"),
        ({"state": "running", "attempt": 1}, "Loading the model"),
        ({"state": "running", "attempt": 1, "phase": "sample", "step": 12, "eta_s": 3.21},
         "Step 12 of 25, about 3.2 s left"),
        ({"state": "running", "attempt": 1, "phase": "sample", "step": 12}, "Step 12 of 25"),
        ({"state": "running", "attempt": 1, "phase": "decode", "step": 25}, "Saving the picture"),
        ({"state": "running", "attempt": 1, "step": 3, "cancel_requested": True}, "Stopping"),
        ({"state": "succeeded", "attempt": 1, "seconds": {"load": 1.0, "sample": 2.0, "total": 3.5}},
         "Done in 3.5 s"),
        ({"state": "failed", "attempt": 1}, "Failed"),
        ({"state": "cancelled", "cancel_requested": True}, "Cancelled"),
        ({"state": "dead", "attempt": 3}, "Given up after 3 attempts"),
    ],
)
def test_each_state_has_its_words(fields: dict[str, Any], said: str) -> None:
    assert words.state(job(**fields)) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (2.25, "2.2 s"), (9.96, "10 s"), (59.6, "1 min"), (61, "1 min 1 s"),
     (3600, "1 h 0 min"), (7380, "2 h 3 min")],
)
def test_a_length_of_time_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("flops", "said"),
    [(12, "12 FLOP"), (1.5e6, "1.5 MFLOP"), (4.12e11, "412 GFLOP"), (2e12, "2 TFLOP"),
     (7.25e15, "7.25 PFLOP")],
)
def test_an_amount_of_work_has_a_unit_that_keeps_it_short(flops: float, said: str) -> None:
    assert words.work(flops) == said


@pytest.mark.parametrize(
    ("age", "said"),
    [(timedelta(seconds=20), "just now"), (timedelta(minutes=5), "5 min ago"),
     (timedelta(hours=3), "3 h ago"), (timedelta(days=2), "22 Nov 2026")],
)
def test_an_age_is_said_as_people_say_it(age: timedelta, said: str) -> None:
    assert words.ago(NOW - age, NOW) == said


def done(model: str, flops: int | None, sample_s: float) -> JobView:
    return job(state="succeeded", model=model, flops=flops, seconds={"load": 9.0, "sample": sample_s})


def test_expected_seconds_grow_with_the_work_and_pass_over_other_models_and_one_slow_job() -> None:
    past = [done("m", 100, 1.0), done("m", 200, 2.0), done("m", 100, 60.0), done("other", 100, 7.0),
            done("m", None, 5.0), job(flops=100)]
    assert words.expected_seconds(past, "m", 400) == pytest.approx(4.0)
    assert words.expected_seconds(past, "unseen", 400) is None


@given(st.text())
def test_a_label_holds_no_markup_whatever_the_prompt(prompt: str) -> None:
    label = words.label(prompt)
    assert all(character.isalnum() or character == " " for character in label if character.isascii())
    assert len(label) <= words.LABEL_CHARACTERS


def test_fields_are_called_what_the_page_calls_them() -> None:
    said = words.spoken("width x num_inference_steps x num_images is 9; lower one of them.")
    assert said == "Width x steps x pictures is 9; lower one of them."
