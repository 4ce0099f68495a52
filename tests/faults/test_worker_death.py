"""Workers that are killed, stopped or told to stop in the middle of a drawing: real processes and signals."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from mezzotint.worker import jobs
from mezzotint.worker.database import Database

pytestmark = pytest.mark.faults

PROMISED_S = 30


def begin(service: Any, until: Callable[..., None], **fields: Any) -> str:
    """Submit a job and wait until it is some steps on its way."""
    job = service.client.submit(service.request(**fields))
    until(lambda: service.client.get(job.id).step >= 2, 60, service.log)
    return str(job.id)


def claimer(service: Any, job_id: str, workers: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Which of the workers runs a job, by the name in its row."""
    name = jobs.find(Database(service.settings.database_url), job_id, "local").worker
    return next(worker for worker in workers if f"-{worker.pid}-" in name)


def test_a_job_whose_child_process_is_killed_runs_again(
    make_service: Callable[..., Any], until: Callable[..., None], one_result: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    worker = service.start_worker()
    job_id = begin(service, until, num_inference_steps=12)
    os.kill(service.drawing_child(worker), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: service.client.get(job_id).attempt == 2, PROMISED_S, service.log)
    print(f"ran again {time.monotonic() - killed:.1f} s after its child was killed")
    service.client.wait(job_id, timeout_s=60)
    one_result(service, job_id, attempt=2)


def test_a_job_whose_whole_worker_is_killed_runs_again_on_another(
    make_service: Callable[..., Any], until: Callable[..., None], one_result: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    workers = [service.start_worker(), service.start_worker()]
    job_id = begin(service, until, num_inference_steps=12)
    os.killpg(claimer(service, job_id, workers).pid, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: service.client.get(job_id).attempt == 2, PROMISED_S, service.log)
    print(f"ran again {time.monotonic() - killed:.1f} s after its worker was killed")
    service.client.wait(job_id, timeout_s=60)
    one_result(service, job_id, attempt=2)


def test_a_child_does_not_outlive_its_worker(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(null_step_s=1.0)
    service.start_broker()
    worker = service.start_worker()
    begin(service, until, num_inference_steps=120)
    child = service.drawing_child(worker)
    worker.kill()
    worker.wait()
    until(lambda: not os.path.exists(f"/proc/{child}"), 10)


def test_the_late_commit_of_a_worker_stopped_past_its_lease_is_refused(
    make_service: Callable[..., Any], until: Callable[..., None], one_result: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2, lease_s=2, reconcile_s=0.5)
    service.start_broker()
    workers = [service.start_worker(), service.start_worker()]
    job_id = begin(service, until, num_inference_steps=10)
    stopped = claimer(service, job_id, workers)
    os.killpg(stopped.pid, signal.SIGSTOP)
    service.client.wait(job_id, timeout_s=60)
    one_result(service, job_id, attempt=2)
    before = service.client.get(job_id)
    os.killpg(stopped.pid, signal.SIGCONT)
    until(lambda: f"job {job_id}, attempt 1: lost its lease" in service.log(), 60, service.log)
    assert service.client.get(job_id) == before
    one_result(service, job_id, attempt=2)


def test_a_worker_told_to_stop_finishes_what_it_can(
    make_service: Callable[..., Any], until: Callable[..., None], one_result: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2, shutdown_grace_s=10)
    service.start_broker()
    worker = service.start_worker()
    job_id = begin(service, until, num_inference_steps=10)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, service.log()
    one_result(service, job_id, attempt=1)
    assert not service.client.workers()


def test_a_worker_told_to_stop_hands_back_what_takes_longer(
    make_service: Callable[..., Any], until: Callable[..., None], one_result: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2, shutdown_grace_s=0.5, max_attempts=1)
    service.start_broker()
    worker = service.start_worker()
    job_id = begin(service, until, num_inference_steps=15)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, service.log()
    assert service.client.get(job_id).state == "queued"
    service.start_worker()
    service.client.wait(job_id, timeout_s=60)
    one_result(service, job_id, attempt=2)


def test_a_running_job_is_cancelled_within_a_step(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.5)
    service.start_broker()
    service.start_worker()
    job_id = begin(service, until, num_inference_steps=100)
    asked = service.client.cancel(job_id)
    assert (asked.state, asked.cancel_requested) == ("running", True)
    job = service.client.wait(job_id, timeout_s=60)
    assert job.state == "cancelled"
    assert asked.step <= job.step <= asked.step + 1
    next_job = service.client.submit(service.request(num_inference_steps=1))
    assert service.client.wait(next_job.id, timeout_s=60).state == "succeeded"
