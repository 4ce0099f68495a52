"""What an engine may do, and what becomes of the job: in one process, on a real table, without a broker."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mezzotint.sampling.engine import Cancelled, Drawn, Progress
from mezzotint.sampling.null_engine import NullEngine
from mezzotint.sampling.request import GenerateRequest, RequestError
from mezzotint.worker import attempts
from mezzotint.worker.database import Database
from mezzotint.worker.errors import SettingsError
from mezzotint.worker.events import Events
from mezzotint.worker.runner import Runner
from mezzotint.worker.storage import Storage, StorageError


class Engine:
    """Runs `act` at every step of three, then draws as the null engine does."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.steps = act, 0

    def draw(
        self,
        request: GenerateRequest,
        *,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Drawn:
        for step in range(3):
            if cancelled():
                raise Cancelled
            self.act(step)
            self.steps += 1
            on_progress(Progress(phase="sample", step=step + 1, num_steps=3))
        return NullEngine(0).draw(request)


def make_runner(service: Any, engine: Callable[[], Any], **changes: Any) -> Runner:
    settings = service.settings
    given: dict[str, Any] = {
        "database": Database(settings.database_url), "storage": Storage(settings.storage_url),
        "events": Events(settings), "engine": engine, "worker": "here", "lease_s": 5.0,
    }
    return Runner(**(given | changes))


def at_step(number: int, act: Callable[[], Any]) -> Engine:
    return Engine(lambda step: act() if step == number else None)


def throw(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RequestError("width", "width is 7; lower it."), "request", "width is 7; lower it."),
        (MemoryError("lower num_images."), "memory", "lower num_images."),
        (MemoryError(), "memory", "out of memory; lower the size or num_images."),
        (KeyError("x"), "internal", "the engine failed (KeyError: 'x'); the worker's log has more."),
    ],
)
def test_an_engines_error_is_the_jobs_and_the_next_job_runs(
    service: Any, error: Exception, code: str, message: str
) -> None:
    bad, good = (service.client.submit(service.request()).id for _ in range(2))
    make_runner(service, lambda: at_step(1, throw(error))).run(bad, 0)
    failed = service.client.get(bad)
    assert (failed.state, failed.error.code, failed.error.message) == ("failed", code, message)
    make_runner(service, lambda: NullEngine(0)).run(good, 0)
    assert service.client.get(good).state == "succeeded"


def test_an_unforeseen_error_is_in_the_log_with_its_trace(service: Any, caplog: Any) -> None:
    job = service.client.submit(service.request())
    make_runner(service, lambda: at_step(0, throw(ZeroDivisionError("here")))).run(job.id, 0)
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError: here" in caplog.text


def test_an_engine_that_cannot_start_fails_the_job(service: Any) -> None:
    job = service.client.submit(service.request())

    def no_engine() -> Any:
        raise SettingsError("MEZZOTINT_ENGINE is 'x'; it must be torch.")

    make_runner(service, no_engine).run(job.id, 0)
    assert "MEZZOTINT_ENGINE is 'x'" in service.client.get(job.id).error.message


def test_a_cancel_stops_before_the_next_step(service: Any) -> None:
    job = service.client.submit(service.request())
    engine = at_step(0, lambda: service.client.cancel(job.id))
    assert make_runner(service, lambda: engine).run(job.id, 0) == "cancelled"
    assert engine.steps == 1
    ended = service.client.get(job.id)
    assert (ended.state, ended.outputs, ended.error) == ("cancelled", [], None)


def test_a_cancel_during_the_last_step_leaves_no_picture(service: Any) -> None:
    job = service.client.submit(service.request())
    engine = at_step(2, lambda: service.client.cancel(job.id))
    assert make_runner(service, lambda: engine).run(job.id, 0) == "cancelled"
    assert not list(service.settings.data_dir.rglob("*.png"))


def test_a_worker_that_stops_hands_the_job_back_uncounted(service: Any) -> None:
    job = service.client.submit(service.request())
    database = Database(service.settings.database_url)
    for attempt in range(5):
        engine = at_step(0, lambda: attempts.ask_back(database, "here", -1))
        assert make_runner(service, lambda e=engine: e).run(job.id, attempt) == "handed back"
    assert service.client.get(job.id).state == "queued"
    assert make_runner(service, lambda: NullEngine(0)).run(job.id, 5) == "succeeded"


def test_a_lease_is_renewed_for_as_long_as_the_drawing_takes(service: Any) -> None:
    job = service.client.submit(service.request())
    left: list[float] = []

    def look() -> None:
        time.sleep(0.5)
        row = database.engine.connect().exec_driver_sql(
            "SELECT lease_until - (julianday('now') - 2440587.5) * 86400.0 FROM jobs"
        )
        left.append(row.scalar_one())

    database = Database(service.settings.database_url)
    assert make_runner(service, lambda: Engine(lambda _: look()), lease_s=0.3).run(job.id, 0) == "succeeded"
    assert len(left) == 3
    assert min(left) > 0


def test_a_late_double_loses_and_its_file_goes(service: Any) -> None:
    job = service.client.submit(service.request(seed=1))
    winner = make_runner(service, lambda: NullEngine(0))

    def overtake() -> None:
        database = winner.database
        with database.writing() as connection:  # as the reconciler does with an expired lease
            connection.exec_driver_sql("UPDATE jobs SET state = 'queued'")
        assert winner.run(job.id, 1) == "succeeded"

    class Other(Engine):
        def draw(self, request: GenerateRequest, **hooks: Any) -> Drawn:
            hooks["cancelled"] = lambda: False  # it notices nothing until it commits
            drawn = super().draw(request, **hooks)
            overtake()
            return Drawn(
                images=[drawn.images[0].resize((32, 32))], seeds=[1], seconds={}, flops=0,
                model="late", fingerprint="late", device="none", dtype="none",
            )

    assert make_runner(service, lambda: Other(lambda _: None)).run(job.id, 0) == "lost its lease"
    done = service.client.get(job.id)
    assert (done.state, done.attempt, len(done.outputs), done.outputs[0].width) == ("succeeded", 2, 1, 64)
    [file] = service.settings.data_dir.rglob("*.png")
    assert done.outputs[0].sha256 in file.name


def test_a_storage_that_fails_fails_the_job_with_its_sentence(service: Any) -> None:
    class Full(Storage):
        def put(self, sha256: str, data: bytes) -> None:
            raise StorageError("no space left; free some.")

    job = service.client.submit(service.request())
    storage = Full(service.settings.storage_url)
    make_runner(service, lambda: NullEngine(0), storage=storage).run(job.id, 0)
    failed = service.client.get(job.id)
    assert (failed.state, failed.error.code, failed.outputs) == ("failed", "storage", [])


def test_a_job_is_run_once_though_its_message_comes_often(service: Any) -> None:
    job = service.client.submit(service.request())
    engine = Engine(lambda _: time.sleep(0.05))
    runner = make_runner(service, lambda: engine)
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(runner.run(job.id, 0))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["not wanted"] * 4 + ["succeeded"]
    assert engine.steps == 3
