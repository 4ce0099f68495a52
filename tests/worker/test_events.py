"""Progress and previews on a real server, and what becomes of them when it does not answer."""

import io
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from mezzotint.sampling.engine import Progress
from mezzotint.worker.events import MUTE_S, Event, Events
from mezzotint.worker.reporter import Reporter


def step(number: int, attempt: int = 1) -> Event:
    return Event(attempt=attempt, phase="sample", step=number, num_steps=9)


@pytest.fixture
def events(service: Any) -> Events:
    service.start_broker()
    return Events(service.settings)


def test_the_latest_event_of_each_job_is_read_and_none_of_a_job_without(events: Events) -> None:
    for number in (1, 2):
        events.report("a", step(number))
    events.report("b", step(7))
    assert events.latest(["a", "b", "c"]) == {"a": step(2), "b": step(7)}


def test_a_stream_is_replayed_from_any_of_its_events(events: Events) -> None:
    for number in range(5):
        events.report("a", step(number))
    whole = events.history("a")
    assert [event.step for _, event in whole] == [0, 1, 2, 3, 4]
    assert events.history("a", after=whole[2][0]) == whole[3:]


def test_a_preview_is_replaced_and_goes_after_its_time(make_service: Callable[..., Any]) -> None:
    service = make_service(preview_ttl_s=1)
    service.start_broker()
    events = Events(service.settings)
    events.report("a", step(1), b"old")
    events.report("a", step(2), b"new")
    events.report("a", step(3))
    assert events.preview("a") == b"new"
    time.sleep(1.2)
    assert events.preview("a") is None


def test_previews_are_small_and_come_at_most_twice_a_second(events: Events) -> None:
    sent: list[bytes | None] = []
    events.report = lambda job_id, event, preview=None: sent.append(preview)  # type: ignore[method-assign]
    reporter = Reporter(events, "a", 1)
    large = Image.effect_noise((1024, 768), 90)
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        reporter(Progress(phase="sample", step=1, num_steps=9, preview=large))
    previews = [preview for preview in sent if preview]
    assert len(sent) > 10
    assert 2 <= len(previews) <= 3
    image = Image.open(io.BytesIO(previews[0]))
    assert (image.format, image.size) == ("JPEG", (256, 192))


def test_the_time_left_is_that_of_the_steps_seen(events: Events) -> None:
    reporter = Reporter(events, "a", 1)
    times = []
    for number in range(1, 5):
        time.sleep(0.1)
        times.append(time.monotonic())
        reporter(Progress(phase="sample", step=number, num_steps=14))
    pace_s = (times[-1] - times[0]) / 3
    assert events.latest(["a"])["a"].eta_s == pytest.approx(10 * pace_s, rel=0.1)


def test_a_worker_is_there_until_it_says_goodbye(events: Events) -> None:
    events.announce_worker("w1", ["image"])
    events.announce_worker("w2", ["celery"])
    assert events.workers() == {"w1": ["image"], "w2": ["celery"]}
    events.forget_worker("w1")
    assert events.workers() == {"w2": ["celery"]}


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broker_that_does_not_answer_costs_one_short_wait_and_no_error(
    service: Any, events: Events, fault: signal.Signals
) -> None:
    events.report("a", step(1))
    os.kill(service.broker.pid, fault)
    began = time.monotonic()
    for number in range(200):
        events.report("a", step(number), b"preview")
        assert events.latest(["a"]) == {}
        assert events.preview("a") is None
        assert events.workers() == {}
    assert time.monotonic() - began < MUTE_S
    os.kill(service.broker.pid, signal.SIGCONT)


def test_progress_goes_on_once_the_broker_is_back(service: Any, events: Events) -> None:
    service.kill_broker()
    events.report("a", step(1))
    service.start_broker()
    time.sleep(MUTE_S)
    events.report("a", step(2))
    assert events.latest(["a"]) == {"a": step(2)}
