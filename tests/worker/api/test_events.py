"""Following a job by server-sent events: complete, replayable, and ended with the job."""

import http.client
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Reader = Callable[[bytes], Iterator[dict[str, Any]]]


def follow(gateway: Any, job_id: str, events: Reader, **headers: str) -> list[dict[str, Any]]:
    answer = gateway.call("GET", f"/v1/jobs/{job_id}/events", **headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return list(events(answer.body))


@pytest.fixture
def drawn(service: Any, gateway: Any) -> str:
    """A finished job of three steps."""
    service.start_worker()
    job_id = str(gateway.submit()["id"])
    assert service.client.wait(job_id, timeout_s=60).state == "succeeded", service.log()
    return job_id


def test_a_job_is_followed_from_the_queue_to_its_picture(service: Any, gateway: Any, events: Reader) -> None:
    job = gateway.submit()
    seen: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: seen.extend(follow(gateway, job["id"], events)))
    thread.start()
    service.start_worker()
    thread.join(120)
    assert not thread.is_alive(), service.log()
    states = [event["data"]["state"] for event in seen if event["event"] == "job"]
    assert states[0] == "queued"
    assert states[-1] == "succeeded"
    assert [e["data"]["step"] for e in seen if e["event"] == "progress"] == [1, 2, 3]
    assert seen[-1]["id"] == "end"
    assert seen[-1]["data"] == gateway.call("GET", f"/v1/jobs/{job['id']}").json


def test_events_are_replayed_from_any_id_by_header_or_by_address(gateway: Any, drawn: str, events: Reader) -> None:
    whole = follow(gateway, drawn, events)
    progress = [event for event in whole if event["event"] == "progress"]
    assert [event["data"]["step"] for event in progress] == [1, 2, 3]
    for index, event in enumerate(progress):
        rest = follow(gateway, drawn, events, Last_Event_ID=event["id"])
        assert rest == whole[index + 1 :]
        answer = gateway.call("GET", f"/v1/jobs/{drawn}/events?after={event['id']}")
        assert list(events(answer.body)) == rest


def test_a_browser_that_has_seen_the_end_is_told_to_stop_asking(gateway: Any, drawn: str) -> None:
    answer = gateway.call("GET", f"/v1/jobs/{drawn}/events", Last_Event_ID="end")
    assert (answer.status, answer.body) == (204, b"")


def test_a_job_whose_progress_is_lost_is_still_told_in_full(
    service: Any, gateway: Any, drawn: str, events: Reader
) -> None:
    service.kill_broker()
    [event] = follow(gateway, drawn, events)
    assert (event["event"], event["data"]["state"]) == ("job", "succeeded")


@pytest.mark.parametrize("event_id", ["1", "1-2-3", "-", "latest", "9" * 21 + "-0", "0-0' or"])
def test_an_id_that_never_was_one_is_refused(gateway: Any, event_id: str) -> None:
    job = gateway.submit()
    answer = gateway.call("GET", f"/v1/jobs/{job['id']}/events", Last_Event_ID=event_id)
    assert answer.status == 400
    assert "last" in answer.error["message"].lower()


def test_a_stream_ends_when_the_gateway_is_told_to_stop(service: Any, gateway: Any, events: Reader) -> None:
    job = gateway.submit()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request("GET", f"/v1/jobs/{job['id']}/events")
    answer = connection.getresponse()
    assert answer.readline().startswith(b"event: job")
    gateway.process.terminate()
    [event] = events(b"event: job\n" + answer.read())
    assert event["data"]["state"] == "queued"
    assert gateway.process.wait(30) == 0, service.log()
