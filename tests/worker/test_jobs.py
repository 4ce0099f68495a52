"""The job table under many hands: who gets a job, what a repeat is, and that there is one end."""

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from mezzotint.worker import attempts, jobs
from mezzotint.worker.database import Database
from mezzotint.worker.errors import IdempotencyConflict, JobNotFound
from mezzotint.worker.migrate import migrate
from mezzotint.worker.schema import jobs as table

CLAIMER = """
import sys
import time
from mezzotint.worker import attempts
from mezzotint.worker.database import Database
database = Database(sys.argv[1])
print("here", flush=True)
sys.stdin.readline()
for job_id in sys.argv[3:]:
    if attempts.claim(database, job_id, 0, worker=sys.argv[2], lease_s=60):
        print(job_id)
    time.sleep(0.02)  # as a drawing would, so that on a busy machine the others come to claim as well
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def database(url: str) -> Database:
    database = Database(url)
    migrate(database)
    return database


def new(**fields: Any) -> jobs.NewJob:
    given = {"owner": "ann", "request": {"prompt": "x"}, "request_hash": "h", "flops": 1, "queue": "image"}
    return jobs.NewJob(**(given | fields))


def add(database: Database, **fields: Any) -> str:
    return str(jobs.submit(database, new(**fields))[0].id)


def take(database: Database, job_id: str, attempt: int = 0, lease_s: float = 60) -> attempts.Claim:
    claim = attempts.claim(database, job_id, attempt, worker="w", lease_s=lease_s)
    assert claim is not None
    return claim


def state(database: Database, job_id: str) -> str:
    with database.reading() as connection:
        return str(connection.execute(select(table.c.state).where(table.c.id == job_id)).scalar_one())


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """The results of calling `act` from `count` threads that start together."""
    gate = threading.Barrier(count)

    def enter(number: int) -> Any:
        gate.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(enter, range(count)))


def test_twenty_submits_at_once_with_one_key_make_one_job(database: Database) -> None:
    answers = at_once(20, lambda _: jobs.submit(database, new(idempotency_key="k")))
    assert len({row.id for row, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    with database.reading() as connection:
        assert len(connection.execute(select(table)).all()) == 1


def test_a_key_with_another_request_is_refused_in_one_sentence(database: Database) -> None:
    job_id = add(database, idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=rf"'k' was used for another request.*{job_id}") as refused:
        jobs.submit(database, new(idempotency_key="k", request_hash="other"))
    assert "\n" not in str(refused.value)


def test_owners_do_not_share_their_keys(database: Database) -> None:
    assert add(database, idempotency_key="k") != add(database, idempotency_key="k", owner="bob")


@pytest.mark.parametrize("key", ["", "x" * 201, 7])
def test_a_key_that_is_no_short_text_is_refused(database: Database, key: Any) -> None:
    with pytest.raises(ValueError, match=r"idempotency_key is .* 1 to 200 characters"):
        jobs.submit(database, new(idempotency_key=key))


def test_each_job_is_claimed_once_by_processes_that_race_for_all(database: Database, url: str) -> None:
    ids = [add(database) for _ in range(60)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, url, f"w{n}", *ids[n * 20 :], *ids[: n * 20]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "here\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    claimed = [racer.communicate()[0].split() for racer in racers]
    assert sum(bool(ids_of_one) for ids_of_one in claimed) > 1, "only one of them came to claim anything"
    assert all(racer.returncode == 0 for racer in racers)
    assert Counter(itertools.chain(*claimed)) == Counter(ids)


def test_one_of_many_threads_claims_an_attempt(database: Database) -> None:
    job_id = add(database)
    claims = at_once(10, lambda n: attempts.claim(database, job_id, 0, worker=f"w{n}", lease_s=60))
    assert [c.attempt for c in claims if c] == [1]


def test_a_message_of_an_earlier_attempt_claims_nothing(database: Database) -> None:
    job_id = add(database)
    attempts.hand_back(database, take(database, job_id))
    assert attempts.claim(database, job_id, 0, worker="w", lease_s=60) is None
    assert take(database, job_id, attempt=1).attempt == 2


def test_an_attempt_whose_job_went_on_can_change_nothing(database: Database) -> None:
    job_id = add(database)
    late = take(database, job_id)
    attempts.hand_back(database, late)
    current = take(database, job_id, attempt=1)
    assert not attempts.renew(database, late, 60)
    assert not attempts.commit(database, late, {})
    assert not attempts.fail(database, late, "internal", "x")
    assert not attempts.hand_back(database, late)
    assert attempts.order(database, late) == "lost"
    assert attempts.order(database, current) == "draw"
    assert attempts.commit(database, current, {"flops": 2})
    assert state(database, job_id) == "succeeded"


def test_cancelling_a_waiting_job_ends_it_and_no_message_brings_it_back(database: Database) -> None:
    job_id = add(database)
    assert jobs.cancel(database, job_id, "ann").state == "cancelled"
    assert attempts.claim(database, job_id, 0, worker="w", lease_s=60) is None


def test_a_running_job_that_was_asked_to_stop_can_no_longer_succeed(database: Database) -> None:
    job_id = add(database)
    claim = take(database, job_id)
    asked = jobs.cancel(database, job_id, "ann")
    assert (asked.state, asked.cancel_requested) == ("running", True)
    assert attempts.order(database, claim) == "cancel"
    assert not attempts.commit(database, claim, {})
    assert not attempts.hand_back(database, claim)
    assert attempts.end_cancelled(database, claim)
    assert state(database, job_id) == "cancelled"


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_final_state_never_changes(database: Database, end: str) -> None:
    job_id = add(database)
    claim = take(database, job_id)
    if end == "cancelled":
        jobs.cancel(database, job_id, "ann")
    ways = {
        "succeeded": lambda: attempts.commit(database, claim, {}),
        "failed": lambda: attempts.fail(database, claim, "memory", "lower it."),
        "cancelled": lambda: attempts.end_cancelled(database, claim),
    }
    assert ways[end]()
    before = jobs.find(database, job_id, "ann")
    for way in ways.values():
        assert not way()
    jobs.cancel(database, job_id, "ann")
    jobs.cancel(database, job_id, "ann")
    assert jobs.find(database, job_id, "ann") == before


def test_a_race_of_every_ending_has_one_winner(database: Database) -> None:
    for _ in range(10):
        job_id = add(database)
        claim = take(database, job_id)
        ways = [
            lambda c=claim: attempts.commit(database, c, {}),
            lambda c=claim: attempts.fail(database, c, "internal", "x"),
            lambda c=claim: attempts.hand_back(database, c),
        ]
        assert sum(at_once(3, lambda n, w=ways: w[n]())) == 1


def test_another_owner_can_neither_see_nor_cancel_a_job(database: Database) -> None:
    job_id = add(database)
    for act in (jobs.find, jobs.cancel):
        with pytest.raises(JobNotFound, match=job_id):
            act(database, job_id, "bob")
    assert state(database, job_id) == "queued"


def test_pages_show_each_job_once_newest_first_while_more_arrive(database: Database) -> None:
    ids = [add(database) for _ in range(7)]
    add(database, owner="bob")
    seen: list[str] = []
    cursor = None
    while True:
        rows, cursor = jobs.page(database, "ann", 3, cursor)
        seen += [row.id for row in rows]
        add(database)
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize("limit", [0, 201, -1])
def test_a_page_size_out_of_range_is_refused(database: Database, limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}; it must be from 1 to 200"):
        jobs.page(database, "ann", limit, None)


@pytest.mark.parametrize("cursor", ["x", "-1", "", "²", "9" * 19])
def test_a_cursor_of_someone_else_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(ValueError, match="use the next_cursor"):
        jobs.page(database, "ann", 5, cursor)


def test_places_count_those_who_wait_ahead_in_the_same_queue(database: Database) -> None:
    first, second, third = (add(database) for _ in range(3))
    elsewhere = add(database, queue="video")
    take(database, first)
    rows = [jobs.find(database, job_id, "ann") for job_id in (first, second, third, elsewhere)]
    assert jobs.places(database, rows) == {second: 1, third: 2, elsewhere: 1}


def test_a_handed_back_job_is_due_only_after_the_grace(database: Database) -> None:
    claim = take(database, add(database))
    assert attempts.ask_back(database, "w", 60) == 1
    assert attempts.order(database, claim) == "draw"
    assert attempts.ask_back(database, "w", -1) == 1
    assert attempts.order(database, claim) == "hand_back"
