"""What `mezzotint up` starts: broker, intake, worker, HTTP gateway and page, each a process of its own."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mezzotint.worker import broker
from mezzotint.worker.access import check_reachable
from mezzotint.worker.child import Child
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.folder_lock import lock_folder
from mezzotint.worker.migrate import migrate
from mezzotint.worker.ports import check_port, http_address
from mezzotint.worker.redis_client import check
from mezzotint.worker.serve import name_start, parse_queues
from mezzotint.worker.settings import Settings, default_broker_url
from mezzotint.worker.supervisor import Part, Supervisor

PAGE_STOP_S, GATEWAY_STOP_S = 5.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """How the page is started: its command, the folder it runs in, and where it will listen."""

    command: Sequence[str]
    folder: Path
    host: str
    port: int

    @property
    def address(self) -> str:
        """What a browser on this machine opens."""
        return http_address(self.host, self.port)


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Where the HTTP gateway will listen."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """What a program on this machine calls."""
        return http_address(self.host, self.port)


def keep_house(settings: Settings, page: Page, gateway: Gateway, when_ready: Callable[[], None]) -> None:
    """Run everything until SIGINT or SIGTERM, then stop it in order: page, gateway, workers, broker.

    Raises ServiceError with one sentence when the folder or a port is taken, others than this machine could
    come in and there is no token, the broker or the database does not answer, or a part cannot be kept running;
    everything is stopped then, too.
    """
    with lock_folder(settings.data_dir):
        check_port(page.host, page.port)
        check_port(gateway.host, gateway.port, option="--api-port")
        supervisor = Supervisor()
        try:
            if _start(supervisor, settings, page, gateway):
                when_ready()
                supervisor.watch()
        finally:
            supervisor.stop()


def _start(supervisor: Supervisor, settings: Settings, page: Page, gateway: Gateway) -> bool:
    database = Database(settings.database_url)
    migrate(database)
    check_reachable(settings, page.host, database)
    if settings.broker_url == default_broker_url(settings.data_dir):
        if not supervisor.start([_broker(settings)]):
            return False
    else:
        check(settings.broker_url)
    workers = [_worker(settings, "intake"), _worker(settings, "image")]
    return supervisor.start([*workers, _gateway(settings, gateway), _page(settings, page)])


def _broker(settings: Settings) -> Part:
    # `broker.start` itself waits until the server answers.
    return Part(
        name="broker", start=lambda: broker.start(settings), is_ready=lambda _: True, stop_s=broker.STOP_S
    )


def _worker(settings: Settings, queue: str) -> Part:
    events, queues = Events(settings), parse_queues(queue)
    name = "worker" if queue == "image" else queue
    # -P: a stray file in the folder that `up` was started from must not stand in for a library.
    command = [sys.executable, "-P", "-m", "mezzotint", "worker", "--queues", queue]
    return Part(
        name=name,
        start=lambda: Child(name, command, environment=settings.environment()),
        is_ready=lambda child: any(w.startswith(name_start(queues, child.pid)) for w in events.workers()),
        stop_s=settings.shutdown_grace_s + 10,
    )


def _gateway(settings: Settings, gateway: Gateway) -> Part:
    command = [sys.executable, "-P", "-m", "mezzotint", "serve"]
    command += ["--host", gateway.host, "--port", str(gateway.port)]
    return Part(
        name="gateway",
        start=lambda: Child("gateway", command, environment=settings.environment()),
        is_ready=lambda _: _answers(f"{gateway.address}/healthz"),
        stop_s=GATEWAY_STOP_S,
    )


def _page(settings: Settings, page: Page) -> Part:
    return Part(
        name="page",
        start=lambda: Child("page", page.command, environment=settings.environment(), folder=page.folder),
        is_ready=lambda _: _answers(f"{page.address}/_stcore/health"),
        stop_s=PAGE_STOP_S,
    )


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
