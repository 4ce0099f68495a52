"""Whether the service says truly if it can draw, its metrics, its logs, and how much memory the gateway takes."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

SLOW_ENGINE = '''
"""An engine whose model takes as long to load as a file is missing."""

import time
from pathlib import Path

from mezzotint.sampling.null_engine import NullEngine


class SlowEngine(NullEngine):
    def __init__(self, settings):
        while not (Path(settings.data_dir) / "loaded").exists():
            time.sleep(0.05)
        super().__init__(0.0)
'''


def samples(gateway: Any) -> dict[tuple[str, ...], float]:
    """Every sample as (name, label values...): value, read by Prometheus' own parser."""
    answer = gateway.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.body.decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_it_is_ready_only_once_the_model_is_loaded(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(engine="slow_engine:SlowEngine")
    (service.folder / "slow_engine.py").write_text(SLOW_ENGINE)
    gateway = make_gateway(service)

    def ready() -> Any:
        return gateway.call("GET", "/readyz")

    assert gateway.call("GET", "/healthz").json == {"status": "ok"}
    assert ready().json == {"ready": False, "database": True, "broker": False, "engine": False}
    service.start_broker()
    until(lambda: ready().json == {"ready": False, "database": True, "broker": True, "engine": False}, 60)
    service.start_worker(PYTHONPATH=str(service.folder))
    assert (ready().status, ready().json["engine"]) == (503, False)
    (service.settings.data_dir / "loaded").touch()
    until(lambda: ready().status == 200, 60, service.log)
    assert ready().json == {"ready": True, "database": True, "broker": True, "engine": True}


@pytest.mark.slow
def test_it_is_not_ready_any_more_once_the_engine_is_gone(
    service: Any, gateway: Any, until: Callable[..., None]
) -> None:
    worker = service.start_worker()
    until(lambda: gateway.call("GET", "/readyz").status == 200, 60, service.log)
    os.killpg(worker.pid, 9)
    until(lambda: gateway.call("GET", "/readyz").json["engine"] is False, 90, service.log)


def test_metrics_say_what_the_table_says(
    service: Any, gateway: Any, until: Callable[..., None]
) -> None:
    waiting = [gateway.submit()["id"] for _ in range(3)]
    gateway.call("POST", f"/v1/jobs/{waiting[0]}/cancel")
    before = samples(gateway)
    assert before["mezzotint_jobs", "queued"] == 2
    assert before["mezzotint_jobs", "cancelled"] == 1
    assert before["mezzotint_queue_depth", "image"] == 2
    assert 0 <= before["mezzotint_queue_oldest_seconds", "image"] < 600
    assert before["mezzotint_engines_ready",] == 0
    service.start_worker()
    for job_id in waiting[1:]:
        assert service.client.wait(job_id, timeout_s=60).state == "succeeded", service.log()
    until(lambda: samples(gateway).get(("mezzotint_jobs_ended_total", "succeeded")) == 2, 30)
    after = samples(gateway)
    assert after["mezzotint_jobs", "succeeded"] == 2
    assert ("mezzotint_queue_depth", "image") not in after
    assert after["mezzotint_attempts_total",] == 2
    assert after["mezzotint_steps_total",] == 6
    seconds = [service.client.get(job_id).seconds["sample"] for job_id in waiting[1:]]
    assert after["mezzotint_phase_seconds_total", "sample"] == pytest.approx(sum(seconds), abs=1e-3)
    assert after["mezzotint_workers", "image"] == 1
    assert after["mezzotint_engines_ready",] == 1
    assert after["mezzotint_http_requests_total", "POST", "/v1/jobs", "201"] == 3
    assert after["mezzotint_http_requests_total", "POST", "/v1/jobs/{job_id}/cancel", "200"] == 1


def test_failures_are_counted_by_code_and_no_caller_makes_new_names(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(engine="nowhere:Engine")
    service.start_broker()
    service.start_worker()
    gateway = make_gateway(service)
    job = gateway.submit()
    assert service.client.wait(job["id"], timeout_s=60).state == "failed"
    for path in ("/a", "/b", "/v1/jobs/" + "a" * 32):
        gateway.call("GET", path)
    gateway.call("BREW", "/c")
    until(lambda: ("mezzotint_jobs_failed_total", "internal") in samples(gateway), 30)
    found = samples(gateway)
    assert found["mezzotint_jobs_failed_total", "internal"] == 1
    assert found["mezzotint_http_requests_total", "GET", "none", "404"] == 2
    assert found["mezzotint_http_requests_total", "other", "none", "404"] == 1
    assert found["mezzotint_http_requests_total", "GET", "/v1/jobs/{job_id}", "404"] == 1


def test_every_line_of_the_log_is_json_with_the_job_it_is_about(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any]
) -> None:
    service = make_service(log_format="json", engine="nowhere:Engine")
    service.start_broker()
    gateway = make_gateway(service)
    service.start_worker()
    job = gateway.submit(prompt="a secret wish")
    assert service.client.wait(job["id"], timeout_s=60).state == "failed"
    gateway.call("GET", f"/v1/jobs/{job['id']}")
    gateway.call("GET", "/%C3%A9%0aERROR%20forged")
    lines = [json.loads(line) for line in service.log().splitlines()]
    about = [line for line in lines if line.get("job_id") == job["id"]]
    assert {"POST /v1/jobs 201", f"GET /v1/jobs/{job['id']} 200"} <= {line["message"] for line in about}
    [outcome] = [line for line in about if "outcome" in line]
    assert (outcome["outcome"], outcome["attempt"], outcome["level"]) == ("failed (internal)", 1, "INFO")
    assert any("traceback" in line for line in about)
    requests = {line["request_id"] for line in about if "status" in line}
    assert len(requests) == 2
    assert "a secret wish" not in service.log()


def test_the_gateway_is_small_and_has_no_torch(lasting_gateway: Any) -> None:
    service = lasting_gateway.service
    for _ in range(100):
        lasting_gateway.submit()
    for _ in range(20):
        assert lasting_gateway.call("GET", "/v1/jobs?limit=200").status == 200
        lasting_gateway.call("GET", "/metrics")
    for job in service.client.list(limit=20).jobs:
        service.client.wait(job.id, timeout_s=120)
        lasting_gateway.call("GET", f"/v1/jobs/{job.id}/events")
    folder = Path(f"/proc/{lasting_gateway.process.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 120 * 1024
    assert "torch" not in (folder / "maps").read_text()


if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)
