"""The client: what it takes, what it refuses before anything is queued, and how long it may take."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import func, select

from mezzotint.sampling.media import read_metadata, sha256_hex
from mezzotint.sampling.null_engine import NullEngine
from mezzotint.sampling.request import RequestError
from mezzotint.worker import runner
from mezzotint.worker.database import Database
from mezzotint.worker.errors import IdempotencyConflict, JobNotFound, MediaNotFound
from mezzotint.worker.events import Events
from mezzotint.worker.schema import jobs
from mezzotint.worker.storage import Storage


def num_rows(service: Any) -> int:
    with Database(service.settings.database_url).reading() as connection:
        return int(connection.execute(select(func.count()).select_from(jobs)).scalar_one())


def run_here(service: Any, job_id: str, attempt: int = 0) -> str:
    """Do an attempt in this process, without broker or worker."""
    settings = service.settings
    return runner.Runner(
        database=Database(settings.database_url), storage=Storage(settings.storage_url),
        events=Events(settings), engine=lambda: NullEngine(0.0), worker="here", lease_s=5,
    ).run(job_id, attempt)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"prompt": " "}, "prompt", "is empty"),
        ({"width": 65}, "width", "multiple of 32, such as 64 or 96"),
        ({"num_inference_steps": 10**9}, "num_inference_steps", "1000000000.*from 1 to 250"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "nan.*from 0 to 30"),
        ({"density": "fast"}, "density", "has no segments.* give full"),
        ({"model": "no-such-model"}, "model", "no-such-model"),
        ({"colour": "red"}, "colour", "is not a field"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence_and_nothing_is_queued(
    service: Any, fields: dict[str, Any], field: str, says: str
) -> None:
    service.client.list()
    with pytest.raises(RequestError, match=says) as refused:
        service.client.submit(service.request(**fields))
    assert refused.value.field == field
    assert "\n" not in str(refused.value)
    assert num_rows(service) == 0


@pytest.mark.parametrize("request_", [None, "a red apple", ["prompt"], 7])
def test_what_is_no_object_is_refused_as_a_request(service: Any, request_: Any) -> None:
    with pytest.raises(RequestError, match="it must be an object with a prompt"):
        service.client.submit(request_)


def test_a_submitted_job_is_complete_and_waits_first_in_line(service: Any) -> None:
    job = service.client.submit(service.request())
    assert (job.state, job.attempt, job.place, job.step, job.num_steps) == ("queued", 0, 1, 0, 3)
    assert (job.request["width"], job.request["height"], job.request["guidance_scale"]) == (64, 64, 3.0)
    assert isinstance(job.request["seed"], int)
    assert service.client.get(job.id) == job
    assert service.client.list().jobs == [job]
    assert json.loads(job.model_dump_json())["id"] == job.id


def test_a_density_comes_with_the_job_and_its_picture(service: Any, tmp_path: Path) -> None:
    config = {"sample_size": 64, "patch_size": 8, "segments": "1 + 2x[1,3,1,0] + 1"}
    (tmp_path / "cut" / "transformer").mkdir(parents=True)
    (tmp_path / "cut" / "model_index.json").write_text("{}")
    (tmp_path / "cut" / "transformer" / "config.json").write_text(json.dumps(config))
    full, fast = (
        service.client.submit(service.request(model=str(tmp_path / "cut"), density=density))
        for density in (None, "fast")
    )
    assert (full.request["density"], fast.request["density"]) == ("full", "fast")
    assert run_here(service, fast.id) == "succeeded"
    media = service.client.media(service.client.get(fast.id).outputs[0].media_id)
    assert read_metadata(Image.open(io.BytesIO(media)))["request"]["density"] == "fast"


def test_a_finished_job_gives_the_pictures_with_their_settings_inside(service: Any) -> None:
    job = service.client.submit(service.request(num_images=2, seed=5))
    assert run_here(service, job.id) == "succeeded"
    done = service.client.get(job.id)
    assert (done.state, done.step, done.place, done.error) == ("succeeded", 3, None, None)
    assert [output.seed for output in done.outputs] == [5, 6]
    for output in done.outputs:
        data = service.client.media(output.media_id)
        assert (sha256_hex(data), len(data)) == (output.sha256, output.bytes)
        image = Image.open(io.BytesIO(data))
        assert image.size == (output.width, output.height) == (64, 64)
        assert read_metadata(image)["request"]["seed"] == output.seed
    assert {"queue", "sample", "save", "total"} <= done.seconds.keys()


def test_a_picture_drawn_twice_has_the_same_file_and_both_jobs_show_it(service: Any) -> None:
    ids = [service.client.submit(service.request(seed=5)).id for _ in range(2)]
    for job_id in ids:
        run_here(service, job_id)
    outputs = [service.client.get(job_id).outputs[0] for job_id in ids]
    assert outputs[0].sha256 == outputs[1].sha256
    assert outputs[0].media_id != outputs[1].media_id
    assert service.client.media(outputs[0].media_id) == service.client.media(outputs[1].media_id)


def test_the_same_key_and_body_is_the_same_job_though_its_seed_was_drawn_at_random(service: Any) -> None:
    first = service.client.submit(service.request(), idempotency_key="k")
    assert service.client.submit(service.request(), idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict):
        service.client.submit(service.request(prompt="a pear"), idempotency_key="k")
    assert num_rows(service) == 1


def test_nothing_of_a_job_is_shown_to_another_owner(service: Any) -> None:
    job = service.client.submit(service.request(), owner="ann")
    run_here(service, job.id)
    picture = service.client.get(job.id, owner="ann").outputs[0].media_id
    for look in (service.client.get, service.client.cancel, service.client.preview, service.client.wait):
        with pytest.raises(JobNotFound):
            look(job.id, owner="bob")
    with pytest.raises(MediaNotFound):
        service.client.media(picture, owner="bob")
    assert service.client.list(owner="bob").jobs == []


def test_wait_ends_with_the_job_or_with_the_time_given(service: Any) -> None:
    job = service.client.submit(service.request())
    with pytest.raises(TimeoutError, match=f"{job.id} is still queued after 0.2 s"):
        service.client.wait(job.id, timeout_s=0.2)
    threading.Timer(0.2, service.client.cancel, [job.id]).start()
    assert service.client.wait(job.id, timeout_s=10).state == "cancelled"


def test_a_submit_without_a_broker_answers_in_under_a_second_and_the_job_stands(service: Any) -> None:
    service.client.list()  # opens the database
    began = time.monotonic()
    job = service.client.submit(service.request())
    assert time.monotonic() - began < 1.0
    assert service.client.get(job.id).state == "queued"


def test_a_submit_to_a_broker_that_hangs_answers_in_under_a_second(service: Any) -> None:
    service.start_broker()
    service.client.submit(service.request())
    os.kill(service.broker.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            began = time.monotonic()
            service.client.submit(service.request())
            assert time.monotonic() - began < 1.0
    finally:
        os.kill(service.broker.pid, signal.SIGCONT)
    assert num_rows(service) == 4


def test_a_submit_to_a_host_that_swallows_packets_answers_in_under_a_second(make_service: Any) -> None:
    service = make_service(broker_url="redis://192.0.2.1:6379/0")  # a network kept for documentation
    service.client.list()
    began = time.monotonic()
    service.client.submit(service.request())
    assert time.monotonic() - began < 1.0


def test_neither_the_client_nor_the_command_line_imports_torch() -> None:
    code = "import sys, mezzotint.worker.client, mezzotint.worker.house; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
