"""What the reconciler puts right, on a real table and a real broker, round by round."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from sqlalchemy import update

from mezzotint.worker import attempts, jobs
from mezzotint.worker.database import Database, now
from mezzotint.worker.publisher import Publisher
from mezzotint.worker.reconcile import Reconciler
from mezzotint.worker.schema import jobs as table
from mezzotint.worker.storage import Storage


class Bench:
    """A service with a broker and a reconciler, but no worker."""

    def __init__(self, service: Any) -> None:
        self.service = service
        service.start_broker()
        service.client.list()
        self.database = Database(service.settings.database_url)
        self.server = redis.Redis(unix_socket_path=str(service.settings.socket_path))

    def reconciler(self, name: str = "r") -> Reconciler:
        return Reconciler(
            database=self.database, storage=Storage(self.service.settings.storage_url),
            publisher=Publisher(self.service.settings), settings=self.service.settings, name=name,
        )

    def submit(self) -> str:
        return str(self.service.client.submit(self.service.request()).id)

    def claim(self, job_id: str, attempt: int = 0, lease_s: float = 60) -> attempts.Claim:
        claim = attempts.claim(self.database, job_id, attempt, worker="w", lease_s=lease_s)
        assert claim is not None
        return claim

    def num_messages(self) -> int:
        return int(self.server.llen("mezzotint:image"))  # type: ignore[arg-type]

    def age(self, job_id: str, seconds: float) -> None:
        """As if it had been submitted and published that long ago."""
        older = {"created_at": table.c.created_at - seconds, "published_at": table.c.published_at - seconds}
        with self.database.writing() as connection:
            connection.execute(update(table).where(table.c.id == job_id).values(older))

    def state(self, job_id: str) -> str:
        return str(self.service.client.get(job_id).state)


@pytest.fixture
def bench(service: Any) -> Bench:
    return Bench(service)


def test_a_job_whose_message_waits_is_left_alone(bench: Bench) -> None:
    job_id = bench.submit()
    bench.age(job_id, 3600)
    assert bench.num_messages() == 1
    bench.reconciler().round()
    assert bench.num_messages() == 1


def test_a_job_submitted_while_the_broker_was_down_is_published_when_it_is_back(bench: Bench) -> None:
    bench.service.kill_broker()
    job_id = bench.submit()
    bench.age(job_id, 2)
    bench.reconciler().round()
    bench.service.start_broker()
    assert bench.num_messages() == 0
    bench.reconciler().round()
    assert bench.num_messages() == 1
    bench.reconciler().round()
    assert bench.num_messages() == 1


def test_all_messages_lost_at_once_are_sent_again(bench: Bench) -> None:
    ids = [bench.submit() for _ in range(5)]
    bench.server.flushall()
    bench.reconciler().round()
    assert bench.num_messages() == 0, "a message just sent is given time"
    for job_id in ids:
        bench.age(job_id, 10)
    bench.reconciler().round()
    assert bench.num_messages() == 5


def test_one_lost_message_is_noticed_when_a_later_one_is_taken(bench: Bench) -> None:
    lost, taken, waiting = (bench.submit() for _ in range(3))
    bench.server.rpop("mezzotint:image")  # the oldest, by a worker that died with it
    for job_id, seconds in ((lost, 30), (taken, 20), (waiting, 10)):
        bench.age(job_id, seconds)
    bench.reconciler().round()
    assert bench.num_messages() == 2, "nothing tells yet that it was lost"
    bench.server.rpop("mezzotint:image")
    bench.claim(taken)
    bench.reconciler().round()
    assert bench.num_messages() == 2
    bench.reconciler().round()
    assert bench.num_messages() == 2, "the ones of the lost job and of the waiting one"


def test_an_expired_lease_gives_the_job_another_attempt(bench: Bench) -> None:
    job_id = bench.submit()
    bench.server.flushall()
    bench.claim(job_id, lease_s=-1)
    bench.reconciler().round()
    assert bench.state(job_id) == "queued"
    assert bench.num_messages() == 1
    assert bench.claim(job_id, attempt=1).attempt == 2


def test_a_lease_that_holds_is_left_alone(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim(job_id, lease_s=60)
    bench.reconciler().round()
    assert bench.state(job_id) == "running"


def test_a_job_is_dead_after_its_last_lost_attempt_and_says_why(bench: Bench) -> None:
    job_id = bench.submit()
    for attempt in range(3):
        assert bench.state(job_id) == "queued"
        bench.claim(job_id, attempt=attempt, lease_s=-1)
        bench.reconciler().round()
    dead = bench.service.client.get(job_id)
    assert (dead.state, dead.attempt, dead.error.code) == ("dead", 3, "worker_lost")
    assert "ended 3 times while drawing this job, the last time on w" in dead.error.message
    assert dead.finished_at is not None


def test_a_job_to_be_cancelled_ends_so_when_its_worker_vanishes(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim(job_id, lease_s=-1)
    jobs.cancel(bench.database, job_id, "local")
    bench.reconciler().round()
    assert bench.state(job_id) == "cancelled"


def test_one_reconciler_works_at_a_time_and_another_follows_a_dead_one(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    bench = Bench(make_service(reconcile_s=0.1))
    first, second = bench.reconciler("first"), bench.reconciler("second")
    assert first.round()
    assert not second.round()
    assert first.round()
    until(second.round, 5)
    assert not first.round()


def test_the_clock_of_leases_is_the_databases(bench: Bench) -> None:
    with bench.database.reading() as connection:
        before = connection.exec_driver_sql("SELECT strftime('%s', 'now')").scalar_one()
        assert abs(connection.execute(now().select()).scalar_one() - float(before)) < 2
