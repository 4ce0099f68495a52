"""Jobs that take their worker with them: a few attempts, then dead, and the queue moves on."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.faults


def test_a_job_that_crashes_its_process_is_dead_after_three_attempts(
    hostile: Callable[..., Any], engine_path: dict[str, str]
) -> None:
    service = hostile(lease_s=1, reconcile_s=0.3)
    service.start_broker()
    poison = service.client.submit(service.request(prompt="crash"))
    good = service.client.submit(service.request())
    service.start_worker(**engine_path)
    dead = service.client.wait(poison.id, timeout_s=60)
    assert (dead.state, dead.attempt, dead.outputs) == ("dead", 3, []), service.log()
    assert dead.error.code == "worker_lost"
    assert service.client.wait(good.id, timeout_s=60).state == "succeeded"
    later = service.client.submit(service.request())
    assert service.client.wait(later.id, timeout_s=60).state == "succeeded"
    assert service.client.get(poison.id) == dead


def test_a_job_that_hangs_is_ended_by_the_limit_of_an_attempt(
    hostile: Callable[..., Any], engine_path: dict[str, str]
) -> None:
    service = hostile(lease_s=1, reconcile_s=0.3, attempt_limit_s=2, max_attempts=2)
    service.start_broker()
    service.start_worker(**engine_path)
    hung = service.client.submit(service.request(prompt="hang"))
    good = service.client.submit(service.request())
    assert service.client.wait(hung.id, timeout_s=60).state == "dead", service.log()
    assert service.client.get(hung.id).attempt == 2
    assert service.client.wait(good.id, timeout_s=60).state == "succeeded"


def test_an_engine_that_is_not_there_fails_jobs_with_its_sentence(make_service: Callable[..., Any]) -> None:
    service = make_service(engine="nowhere:Engine")
    service.start_broker()
    service.start_worker()
    job = service.client.submit(service.request())
    failed = service.client.wait(job.id, timeout_s=60)
    assert failed.state == "failed"
    assert "MEZZOTINT_ENGINE is 'nowhere:Engine'" in failed.error.message
