"""`mezzotint jobs` on a real queue: what it prints for people, and the one JSON object for programs."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest


def run(service: Any, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", "jobs", *command], env=os.environ | service.settings.environment(),
        capture_output=True, text=True, timeout=180, check=False,
    )


def shown(service: Any, *command: str) -> Any:
    done = run(service, *command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_jobs_are_listed_shown_cancelled_and_tried_again(service: Any) -> None:
    assert "no jobs" in run(service, "list").stdout
    first, second = (service.client.submit(service.request(seed=seed)) for seed in (1, 2))
    page = shown(service, "list", "--limit", "1")
    assert [job["id"] for job in page["jobs"]] == [second.id]
    rest = shown(service, "list", "--cursor", page["next_cursor"])
    assert [job["id"] for job in rest["jobs"]] == [first.id]
    assert shown(service, "show", first.id) == service.client.get(first.id).model_dump(mode="json")
    assert shown(service, "cancel", first.id)["state"] == "cancelled"
    again = shown(service, "retry", first.id)
    assert (again["state"], again["request"]) == ("queued", first.request)
    assert [job["id"] for job in shown(service, "list", "--state", "cancelled")["jobs"]] == [first.id]
    table = run(service, "list").stdout
    assert all(word in table for word in (first.id, "cancelled", "queued", "a red apple"))
    assert f"id               {first.id}" in run(service, "show", first.id).stdout


def test_a_job_is_followed_to_its_end(service: Any) -> None:
    service.start_broker()
    service.start_worker()
    job = service.client.submit(service.request())
    followed = run(service, "tail", job.id)
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.splitlines()[-1] == "succeeded"
    assert "attempt 1: sample 3/3" in followed.stdout
    done = run(service, "tail", job.id, "--json")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert "sample 3/3" in done.stderr
    other = service.client.submit(service.request())
    service.client.wait(other.id, timeout_s=60)


def test_following_a_job_that_does_not_succeed_fails(service: Any) -> None:
    job = service.client.submit(service.request())
    service.client.cancel(job.id)
    followed = run(service, "tail", job.id)
    assert (followed.returncode, followed.stdout) == (1, "cancelled\n")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["show", "nope"], "there is no job 'nope'"),
        (["tail", "nope"], "there is no job 'nope'"),
        (["list", "--state", "lost"], "state is 'lost'; it must be one of queued, running"),
        (["list", "--cursor", "x"], "cursor is 'x'"),
        (["list", "--database-url", "mysql://x/y"], "MEZZOTINT_DATABASE_URL is 'mysql://x/y'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(service: Any, command: list[str], says: str) -> None:
    done = run(service, *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr


def test_a_job_that_still_waits_is_not_tried_again(service: Any) -> None:
    job = service.client.submit(service.request())
    done = run(service, "retry", job.id)
    assert done.returncode == 1
    assert f"job {job.id} is queued; only a failed, dead, cancelled job is tried again" in done.stderr


def test_another_owners_jobs_are_shown_only_by_their_name(service: Any) -> None:
    job = service.client.submit(service.request(), owner="ann")
    assert run(service, "show", job.id).returncode == 1
    assert shown(service, "show", job.id, "--owner", "ann")["owner"] == "ann"
