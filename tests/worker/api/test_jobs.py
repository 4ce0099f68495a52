"""The job routes of a real gateway: what they answer, and that the table says the same."""

import threading
from collections.abc import Callable
from typing import Any

import pytest


def test_a_job_is_submitted_drawn_and_its_file_fetched(service: Any, gateway: Any) -> None:
    service.start_worker()
    answer = gateway.call("POST", "/v1/jobs", gateway.job(seed=5, num_images=2))
    assert answer.status == 201, service.log()
    job = answer.json
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert service.client.wait(job["id"], timeout_s=60).state == "succeeded", service.log()
    done = gateway.call("GET", f"/v1/jobs/{job['id']}").json
    assert (done["state"], done["step"], [o["seed"] for o in done["outputs"]]) == ("succeeded", 3, [5, 6])
    for output in done["outputs"]:
        file = gateway.call("GET", output["url"])
        assert (file.status, file.headers["content-type"]) == (200, "image/png")
        assert file.body == service.client.media(output["media_id"])
        assert file.headers["x-content-type-options"] == "nosniff"
        again = gateway.call("GET", output["url"], If_None_Match=file.headers["etag"])
        assert (again.status, again.body) == (304, b"")


def test_a_job_waits_when_no_worker_is_there_and_is_cancelled_and_tried_again(service: Any, gateway: Any) -> None:
    job = gateway.submit(seed=9)
    assert (job["state"], job["place"], job["request"]["width"]) == ("queued", 1, 64)
    assert gateway.call("POST", f"/v1/jobs/{job['id']}/retry").error["code"] == "not_retryable"
    cancelled = gateway.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    assert gateway.call("POST", f"/v1/jobs/{job['id']}/cancel").json == cancelled.json
    again = gateway.call("POST", f"/v1/jobs/{job['id']}/retry")
    assert again.status == 201
    assert again.json["id"] != job["id"]
    assert again.json["request"] == job["request"]
    assert service.client.get(job["id"]).state == "cancelled"


def test_the_same_key_is_the_same_job_even_when_sent_at_once(service: Any, gateway: Any) -> None:
    ids = set()

    def submit() -> None:
        answer = gateway.call("POST", "/v1/jobs", gateway.job(), Idempotency_Key="order-7")
        ids.add(answer.json["id"])

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 1
    assert len(service.client.list().jobs) == 1
    other = gateway.call("POST", "/v1/jobs", gateway.job(prompt="a pear"), Idempotency_Key="order-7")
    assert other.status == 409
    assert other.error["code"] == "idempotency_conflict"


def test_pages_go_from_the_newest_to_the_oldest_by_cursor(gateway: Any) -> None:
    ids = [gateway.submit()["id"] for _ in range(5)]
    gateway.call("POST", f"/v1/jobs/{ids[0]}/cancel")
    found, cursor = [], ""
    for size in (2, 2, 1):
        page = gateway.call("GET", f"/v1/jobs?limit=2{cursor}").json
        assert len(page["jobs"]) == size
        found += [job["id"] for job in page["jobs"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ids[::-1]
    assert cursor == "&cursor=None"
    assert [job["id"] for job in gateway.call("GET", "/v1/jobs?state=cancelled").json["jobs"]] == ids[:1]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=-1", "cursor=1%20or%201", "state=lost"])
def test_a_bad_parameter_is_named_with_its_value(gateway: Any, query: str) -> None:
    answer = gateway.call("GET", f"/v1/jobs?{query}")
    assert answer.status == 400
    name, _, value = query.partition("=")
    assert answer.error["message"].startswith(f"{name} is '{value.replace('%20', ' ')}'; ")


def test_a_running_job_is_stopped_and_shows_its_preview(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.3)
    service.start_broker()
    service.start_worker()
    gateway = make_gateway(service)
    job = gateway.submit(num_inference_steps=200)
    until(lambda: gateway.call("GET", f"/v1/jobs/{job['id']}/preview").status == 200, 60, service.log)
    preview = gateway.call("GET", f"/v1/jobs/{job['id']}/preview")
    assert preview.headers["content-type"] == "image/jpeg"
    assert preview.body.startswith(b"\xff\xd8")
    asked = gateway.call("POST", f"/v1/jobs/{job['id']}/cancel").json
    assert asked["cancel_requested"]
    ended = service.client.wait(job["id"], timeout_s=60)
    assert (ended.state, ended.outputs) == ("cancelled", [])


def test_jobs_are_taken_while_the_broker_is_gone(service: Any, gateway: Any) -> None:
    service.kill_broker()
    job = gateway.submit()
    assert gateway.call("GET", f"/v1/jobs/{job['id']}").json["state"] == "queued"
    service.start_broker()
    service.start_worker()
    assert service.client.wait(job["id"], timeout_s=90).state == "succeeded", service.log()


def test_a_full_queue_says_when_to_come_again(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any]
) -> None:
    service = make_service(max_queued=2)
    gateway = make_gateway(service)
    first = gateway.call("POST", "/v1/jobs", gateway.job(), Idempotency_Key="k")
    gateway.submit()
    full = gateway.call("POST", "/v1/jobs", gateway.job())
    assert full.status == 429
    assert int(full.headers["retry-after"]) >= 1
    assert "queue is full (2 jobs wait)" in full.error["message"]
    repeat = gateway.call("POST", "/v1/jobs", gateway.job(), Idempotency_Key="k")
    assert (repeat.status, repeat.json["id"]) == (201, first.json["id"])
    gateway.call("POST", f"/v1/jobs/{first.json['id']}/cancel")
    gateway.submit()
