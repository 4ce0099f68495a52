"""What `mezzotint up` starts: broker, intake, worker and page, each a process of its own."""

import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mezzotint.worker import broker
from mezzotint.worker.child import Child
from mezzotint.worker.database import Database
from mezzotint.worker.errors import ServiceError
from mezzotint.worker.events import Events
from mezzotint.worker.folder_lock import lock_folder
from mezzotint.worker.migrate import migrate
from mezzotint.worker.redis_client import check
from mezzotint.worker.serve import name_start, parse_queues
from mezzotint.worker.settings import Settings, default_broker_url
from mezzotint.worker.supervisor import Part, Supervisor

PAGE_STOP_S = 5.0


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
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def keep_house(settings: Settings, page: Page, when_ready: Callable[[], None]) -> None:
    """Run everything until SIGINT or SIGTERM, then stop it in order: page, workers, broker.

    Raises ServiceError with one sentence when the folder or the port is taken, the broker or the database
    does not answer, or a part cannot be kept running; everything is stopped then, too.
    """
    with lock_folder(settings.data_dir):
        _check_port(page)
        supervisor = Supervisor()
        try:
            if _start(supervisor, settings, page):
                when_ready()
                supervisor.watch()
        finally:
            supervisor.stop()


def _start(supervisor: Supervisor, settings: Settings, page: Page) -> bool:
    if settings.broker_url == default_broker_url(settings.data_dir):
        if not supervisor.start([_broker(settings)]):
            return False
    else:
        check(settings.broker_url)
    migrate(Database(settings.database_url))
    return supervisor.start([_worker(settings, "intake"), _worker(settings, "image"), _page(settings, page)])


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


def _check_port(page: Page) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(page.host, page.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise ServiceError(f"host {page.host} is not known; --host takes this machine's address.") from None
    except OSError as error:
        raise ServiceError(
            f"port {page.port} on {page.host} cannot be used ({error.strerror}); stop the program that has "
            "it, or give another --port."
        ) from None
