"""`mezzotint jobs`: what the queue holds, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mezzotint.worker.client import Client
    from mezzotint.worker.events import Event
    from mezzotint.worker.views import JobView

app = typer.Typer(no_args_is_help=True, help="List, show, cancel, retry and follow jobs.")

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Owner = Annotated[str, typer.Option(help="Whose jobs: local is the page's, a token has its own.")]
DataDir = Annotated[str | None, typer.Option(help="Data folder of the `mezzotint up` that has the jobs.")]
BrokerUrl = Annotated[str | None, typer.Option(help="redis:// address of the broker.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="postgresql:// or sqlite:/// address of the job table.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=200, help="Jobs a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="next_cursor of the page before.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only queued, running, succeeded, failed, cancelled or dead ones.")
    ] = None,
    owner: Owner = "local", data_dir: DataDir = None, broker_url: BrokerUrl = None, database_url: DatabaseUrl = None,
    json_output: Json = False,
) -> None:
    """List jobs, newest first."""
    from mezzotint.commands.report import print_json, print_rows

    with _client(data_dir, broker_url, database_url) as client:
        page = client.list(owner=owner, limit=limit, cursor=cursor, state=_state(state))
    if json_output:
        print_json(page.model_dump(mode="json"))
        return
    if not page.jobs:
        print("no jobs")
        return
    print_rows("Jobs", [_row(job) for job in page.jobs])
    if page.next_cursor:
        print(f"older ones: --cursor {page.next_cursor}")


@app.command()
def show(
    job_id: JobId, owner: Owner = "local", data_dir: DataDir = None, broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None, json_output: Json = False,
) -> None:
    """Show one job."""
    with _client(data_dir, broker_url, database_url) as client:
        _print_job(client.get(job_id, owner=owner), json_output)


@app.command()
def cancel(
    job_id: JobId, owner: Owner = "local", data_dir: DataDir = None, broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None, json_output: Json = False,
) -> None:
    """Stop a job: at once when it waits, within one step when it runs."""
    with _client(data_dir, broker_url, database_url) as client:
        _print_job(client.cancel(job_id, owner=owner), json_output)


@app.command()
def retry(
    job_id: JobId, owner: Owner = "local", data_dir: DataDir = None, broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None, json_output: Json = False,
) -> None:
    """Submit a failed, dead or cancelled job's request once more, as a new job."""
    with _client(data_dir, broker_url, database_url) as client:
        _print_job(client.retry(job_id, owner=owner), json_output)


@app.command()
def tail(
    job_id: JobId, owner: Owner = "local", data_dir: DataDir = None, broker_url: BrokerUrl = None,
    database_url: DatabaseUrl = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the job as one JSON object at the end.")] = False,
) -> None:
    """Follow a job until it ends. Progress goes to stderr with --json. Exit code 1 when it did not succeed."""
    import sys

    from mezzotint.worker.views import JobView

    out = sys.stderr if json_output else sys.stdout
    job: JobView | None = None
    with _client(data_dir, broker_url, database_url) as client:
        for news in client.stream(job_id, owner=owner):
            job = news if isinstance(news, JobView) else job
            print(_line(news), file=out, flush=True)
        assert job is not None, "a stream ends with the job"
    if json_output:
        _print_job(job, True)
    raise SystemExit(0 if job.state == "succeeded" else 1)


@contextmanager
def _client(data_dir: str | None, broker_url: str | None, database_url: str | None) -> Iterator["Client"]:
    """A client; a known failure becomes one sentence and exit code 1."""
    from mezzotint.commands.failure import fail
    from mezzotint.worker.client import Client
    from mezzotint.worker.errors import ServiceError
    from mezzotint.worker.settings import Settings

    try:
        yield Client(Settings.load(data_dir=data_dir, broker_url=broker_url, database_url=database_url))
    except (ServiceError, ValueError) as error:
        fail(str(error))


def _state(state: str | None) -> Any:
    from typing import get_args

    from mezzotint.worker.views import State

    if state is not None and state not in get_args(State):
        raise ValueError(f"state is {state!r}; it must be one of {', '.join(get_args(State))}.")
    return state


def _row(job: "JobView") -> dict[str, Any]:
    return {
        "id": job.id, "state": job.state, "attempt": job.attempt, "steps": f"{job.step}/{job.num_steps}",
        "created": job.created_at.isoformat(timespec="seconds"), "asked": _asked(job.request),
        "error": job.error.code if job.error else None,
    }


def _asked(request: dict[str, Any]) -> str:
    """The prompt, or the class where a model draws by class."""
    return str(request["prompt"])[:60] if request.get("prompt") else f"class {request.get('class_label')}"


def _print_job(job: "JobView", json_output: bool) -> None:
    from mezzotint.commands.report import print_json

    shown = job.model_dump(mode="json")
    if json_output:
        print_json(shown)
        return
    for name, value in shown.items():
        if value not in (None, [], {}):
            print(f"{name:<16} {value}")


def _line(news: "JobView | Event") -> str:
    from mezzotint.worker.events import Event

    if isinstance(news, Event):
        eta = "" if news.eta_s is None else f", {news.eta_s:g} s left"
        return f"attempt {news.attempt}: {news.phase} {news.step}/{news.num_steps}{eta}"
    place = f", place {news.place}" if news.place else ""
    reason = f": {news.error.message}" if news.error else ""
    return f"{news.state}{place}{reason}"
