"""Tokens at the door of a real gateway: who comes in, as whom, and how often."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mezzotint.worker import tokens
from mezzotint.worker.database import Database
from mezzotint.worker.migrate import migrate
from mezzotint.worker.tokens import Limits


@pytest.fixture
def database(service: Any) -> Database:
    database = Database(service.settings.database_url)
    migrate(database)
    return database


@pytest.fixture
def make_token(database: Database) -> Callable[..., Any]:
    """Make a token: make_token(name, owner=..., max_active=...) -> (token, secret)."""

    def make(name: str, *, owner: str | None = None, **limits: int) -> Any:
        return tokens.create(database, name, owner=owner, limits=Limits(**limits))

    return make


@pytest.fixture
def closed(service: Any, make_token: Callable[..., Any], make_gateway: Callable[..., Any]) -> Any:
    """A gateway that asks for a token."""
    make_token("first")
    return make_gateway(service, "--require-token")


ROUTES = [
    ("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/" + "0" * 32), ("GET", "/v1/models"),
    ("POST", "/v1/jobs/" + "0" * 32 + "/cancel"), ("POST", "/v1/jobs/" + "0" * 32 + "/retry"),
    ("GET", "/v1/jobs/" + "0" * 32 + "/events"), ("GET", "/v1/jobs/" + "0" * 32 + "/preview"),
    ("GET", "/media/" + "0" * 32), ("POST", "/v1/images/generations"), ("POST", "/v1/images/edits"),
    ("GET", "/metrics"),
]


def test_every_route_wants_a_token(closed: Any) -> None:
    for method, path in ROUTES:
        body = closed.job() if method == "POST" else None
        for wrong in (None, "mzt_guess", "mzt_" + "A" * 43, "sk-openai", "\u00fc"):
            answer = closed.call(method, path, body, token=wrong)
            assert (answer.status, answer.error["code"]) == (401, "unauthorized"), (method, path, wrong, answer)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_the_list_of_routes_has_all_of_them(closed: Any) -> None:
    described = closed.call("GET", "/openapi.json").json["paths"]
    paths = {path.replace("0" * 32, "{job_id}") for _, path in ROUTES if not path.startswith("/media/")}
    open_to_all = {"/healthz", "/readyz"}
    assert described.keys() - open_to_all == paths | {"/media/{media_id}", "/v1/images/variations"}


def test_health_and_the_schema_are_open(closed: Any) -> None:
    assert [closed.call("GET", path).status for path in ("/healthz", "/openapi.json", "/readyz")] == [200, 200, 503]


def test_a_token_opens_until_it_is_revoked(closed: Any, database: Database, make_token: Callable[..., Any]) -> None:
    token, secret = make_token("mine")
    assert closed.call("GET", "/v1/jobs", token=secret).status == 200
    assert [t.last_used_at is not None for t in tokens.list_all(database)] == [False, True]
    tokens.revoke(database, token.id)
    assert closed.call("GET", "/v1/jobs", token=secret).status == 401


def test_a_token_shows_its_owners_jobs_and_pictures_and_nobody_elses(
    service: Any, closed: Any, make_token: Callable[..., Any]
) -> None:
    service.start_broker()
    service.start_worker()
    (_, ann), (_, bob), (_, ann_too) = make_token("ann", owner="ann"), make_token("bob"), make_token("x", owner="ann")
    job = closed.submit(token=ann)
    assert service.client.wait(job["id"], owner="ann", timeout_s=60).state == "succeeded", service.log()
    path = f"/v1/jobs/{job['id']}"
    [output] = closed.call("GET", path, token=ann).json["outputs"]
    assert closed.call("GET", output["url"], token=ann_too).status == 200
    for method, address in (
        ("GET", path), ("POST", f"{path}/cancel"), ("POST", f"{path}/retry"), ("GET", f"{path}/events"),
        ("GET", f"{path}/preview"), ("GET", output["url"]),
    ):
        assert closed.call(method, address, token=bob).status == 404
    assert closed.call("GET", "/v1/jobs", token=bob).json["jobs"] == []
    assert len(closed.call("GET", "/v1/jobs", token=ann_too).json["jobs"]) == 1


def test_an_open_gateway_serves_local_jobs_and_a_token_its_owners(
    service: Any, make_gateway: Callable[..., Any], make_token: Callable[..., Any]
) -> None:
    _, secret = make_token("mine")
    gateway = make_gateway(service)
    mine, local = gateway.submit(token=secret)["id"], gateway.submit()["id"]
    assert [job["id"] for job in gateway.call("GET", "/v1/jobs").json["jobs"]] == [local]
    assert [job["id"] for job in gateway.call("GET", "/v1/jobs", token=secret).json["jobs"]] == [mine]
    assert [job["id"] for job in gateway.call("GET", "/v1/jobs", token="sk-other").json["jobs"]] == [local]
    assert gateway.call("GET", "/v1/jobs", token="mzt_wrong").status == 401


def test_no_more_jobs_wait_or_run_than_a_token_allows_even_when_sent_at_once(
    service: Any, closed: Any, make_token: Callable[..., Any]
) -> None:
    _, secret = make_token("few", max_active=3)
    statuses = []

    def submit() -> None:
        statuses.append(closed.call("POST", "/v1/jobs", closed.job(), token=secret).status)

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [429] * 9
    refused = closed.call("POST", "/v1/jobs", closed.job(), token=secret)
    assert "this token allows 3" in refused.error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    job = closed.call("GET", "/v1/jobs", token=secret).json["jobs"][0]["id"]
    closed.call("POST", f"/v1/jobs/{job}/cancel", token=secret)
    closed.submit(token=secret)


def test_a_days_jobs_are_counted_even_when_they_are_cancelled(closed: Any, make_token: Callable[..., Any]) -> None:
    _, secret = make_token("two a day", jobs_per_day=2)
    for _ in range(2):
        job = closed.submit(token=secret)
        closed.call("POST", f"/v1/jobs/{job['id']}/cancel", token=secret)
    refused = closed.call("POST", f"/v1/jobs/{job['id']}/retry", token=secret)
    assert (refused.status, refused.error["code"]) == (429, "no_room")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400


def test_a_new_day_brings_new_jobs(database: Database, closed: Any, make_token: Callable[..., Any]) -> None:
    token, secret = make_token("one a day", jobs_per_day=1)
    closed.submit(token=secret)
    assert closed.call("POST", "/v1/jobs", closed.job(), token=secret).status == 429
    with sqlite3.connect(str(database.engine.url.database)) as raw:
        raw.execute("UPDATE tokens SET day = day - 1 WHERE id = ?", (token.id,))
    closed.submit(token=secret)


def test_one_that_calls_too_often_waits_as_long_as_it_is_told(closed: Any, make_token: Callable[..., Any]) -> None:
    (_, slow), (_, other) = make_token("slow", requests_per_minute=3), make_token("other")
    answers = [closed.call("GET", "/v1/jobs", token=slow) for _ in range(5)]
    assert [answer.status for answer in answers[:3]] == [200] * 3
    refused = answers[-1]
    assert (refused.status, refused.error["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert closed.call("GET", "/v1/jobs", token=other).status == 200


def test_the_secret_is_kept_nowhere(service: Any, make_token: Callable[..., Any]) -> None:
    _, secret = make_token("mine")
    for file in service.settings.data_dir.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


@pytest.mark.parametrize("command", ["serve", "up"])
def test_others_are_let_in_only_when_there_is_a_token(service: Any, command: str) -> None:
    options = ["--no-browser"] if command == "up" else []
    done = run(service, command, "--host", "0.0.0.0", "--port", "0", *options)
    assert done.returncode == 2  # port 0 is a usage error, so nothing was listened on
    port = str(free_port())
    done = run(service, command, "--host", "0.0.0.0", "--port", port, *options)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "host 0.0.0.0 asks for a token and there is none" in done.stderr


def test_a_gateway_that_others_reach_asks_for_a_token_by_itself(
    service: Any, make_token: Callable[..., Any], make_gateway: Callable[..., Any]
) -> None:
    _, secret = make_token("mine")
    gateway = make_gateway(service, "--host", "0.0.0.0")
    assert gateway.call("GET", "/v1/jobs").status == 401
    assert gateway.call("GET", "/v1/jobs", token=secret, Host="pictures.example").status == 200


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(service: Any, *command: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "mezzotint", *command], env=os.environ | service.settings.environment(),
        capture_output=True, text=True, timeout=120, check=False,
    )
