"""Brokers that are killed, wiped or stopped: every accepted job ends, and none twice."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.faults


def test_a_drawing_goes_on_while_the_broker_is_gone_and_the_queue_after_it_is_back(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    service.start_worker()
    running = service.client.submit(service.request(num_inference_steps=15))
    waiting = service.client.submit(service.request())
    until(lambda: service.client.get(running.id).state == "running", 60, service.log)
    service.kill_broker()
    began = time.monotonic()
    down = service.client.submit(service.request())
    assert time.monotonic() - began < 1.0
    assert service.client.wait(running.id, timeout_s=60).attempt == 1
    assert service.client.get(waiting.id).state == service.client.get(down.id).state == "queued"
    service.start_broker()
    for job in (running, waiting, down):
        ended = service.client.wait(job.id, timeout_s=60)
        assert (ended.state, ended.attempt, len(ended.outputs)) == ("succeeded", 1, 1), service.log()


def test_jobs_whose_messages_were_wiped_are_drawn_all_the_same(make_service: Callable[..., Any]) -> None:
    service = make_service(republish_s=1, reconcile_s=0.5)
    service.start_broker()
    jobs = [service.client.submit(service.request()) for _ in range(5)]
    service.kill_broker()
    shutil.rmtree(service.settings.data_dir / "broker")
    service.start_broker()
    service.start_worker()
    for job in jobs:
        ended = service.client.wait(job.id, timeout_s=60)
        assert (ended.state, ended.attempt) == ("succeeded", 1), service.log()


def test_queued_jobs_survive_a_broker_that_is_killed_with_nobody_there(service: Any) -> None:
    service.start_broker()
    jobs = [service.client.submit(service.request()) for _ in range(5)]
    time.sleep(1.2)  # the append-only file reaches the disk every second
    service.kill_broker()
    service.start_broker()
    service.start_worker()
    for job in jobs:
        assert service.client.wait(job.id, timeout_s=60).state == "succeeded", service.log()


def test_a_broker_that_hangs_for_a_while_costs_no_job_and_doubles_none(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    service.start_worker()
    running = service.client.submit(service.request(num_inference_steps=10))
    until(lambda: service.client.get(running.id).state == "running", 60, service.log)
    os.kill(service.broker.pid, signal.SIGSTOP)
    hung = service.client.submit(service.request())
    assert service.client.wait(running.id, timeout_s=60).state == "succeeded"
    time.sleep(6)  # longer than a worker's patience with its broker
    os.kill(service.broker.pid, signal.SIGCONT)
    for job in (running, hung):
        ended = service.client.wait(job.id, timeout_s=60)
        assert (ended.state, ended.attempt, len(ended.outputs)) == ("succeeded", 1, 1), service.log()
