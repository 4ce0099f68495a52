"""Celery as someone uses it who has only the broker's address: a plain client in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLAIN_CLIENT = """
import json, sys, time
from celery import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
prefix = {"global_keyprefix": "mezzotint:"}
app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)

def ask(name, *args, **options):
    try:
        return app.send_task(name, args, **options).get(timeout=20)
    except Exception as error:
        return {"error": type(error).__name__, "says": str(error)}

answers = []
for name, args, options in json.loads(sys.argv[2]):
    answers.append(ask(name, *args, **options))
if "job_id" in answers[0]:
    for _ in range(600):
        job = ask("mezzotint.job", answers[0]["job_id"])
        if job["state"] not in ("queued", "running"):
            break
        time.sleep(0.1)
    answers.append(job)
assert not any(name.startswith("mezzotint") for name in sys.modules)
print(json.dumps(answers))
"""


def ask(service: Any, *calls: tuple[str, list[Any], dict[str, Any]]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_CLIENT, service.settings.broker_url, json.dumps(calls)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr + service.log()
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_a_plain_celery_client_gets_a_job_and_its_result(service: Any) -> None:
    service.start_broker()
    service.start_worker("intake")
    service.start_worker("image")
    request = service.request(seed=3)
    first, again, keyed, other, job = ask(
        service,
        ("mezzotint.generate", [request], {"task_id": "one"}),
        ("mezzotint.generate", [request], {"task_id": "one"}),
        ("mezzotint.generate", [request, "my key"], {}),
        ("mezzotint.generate", [request | {"seed": 4}, "my key"], {}),
    )
    assert first == again, "a task that is delivered twice is one job"
    assert keyed["job_id"] != first["job_id"]
    assert other["error"] == "ValueError"
    assert "used for another request" in other["says"]
    assert (job["state"], job["request"]["seed"], job["id"]) == ("succeeded", 3, first["job_id"])
    [output] = job["outputs"]
    assert output["url"].startswith("file:///")
    file = Path(output["url"].removeprefix("file://"))
    assert service.client.media(output["media_id"]) == file.read_bytes()


@pytest.mark.slow
def test_bad_input_is_the_tasks_failure_with_its_sentence(service: Any) -> None:
    service.start_broker()
    service.start_worker("intake")
    model = service.model
    bad = [
        ({"prompt": "", "model": model}, "prompt is empty"),
        ({"prompt": "x", "model": model, "width": 65}, "width is 65"),
        ({"prompt": "x", "model": model, "num_inference_steps": 10**9}, "num_inference_steps is 1000000000"),
        ({"prompt": "x", "model": model, "guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prompt": "x", "model": "no-such-model"}, "no-such-model"),
        ("a red apple", "it must be an object with a prompt"),
        (None, "it must be an object with a prompt"),
    ]
    answers = ask(service, *[("mezzotint.generate", [request], {}) for request, _ in bad])
    for answer, (_, says) in zip(answers, bad, strict=True):
        assert answer["error"] == "ValueError"
        assert says in answer["says"]
        assert "\n" not in answer["says"]
    assert service.client.list().jobs == []
    [missing] = ask(service, ("mezzotint.job", ["no-such-job"], {}))
    assert missing["error"] == "LookupError"
    assert "no-such-job" in missing["says"]


@pytest.mark.slow
def test_intake_answers_while_the_worker_draws(service: Any) -> None:
    service.start_broker()
    service.start_worker("intake")
    service.start_worker("image", MEZZOTINT_NULL_STEP_S="5")
    job = service.client.submit(service.request())
    [seen] = ask(service, ("mezzotint.job", [job.id], {}))
    assert seen["state"] in ("queued", "running")
