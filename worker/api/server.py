"""Runs the gateway in this process until it is told to stop."""

import logging
import signal
import socket

import uvicorn

from mezzotint.worker import logs
from mezzotint.worker.access import check_reachable, needs_token
from mezzotint.worker.api.app import make_app, make_service
from mezzotint.worker.api.connection import PatientProtocol
from mezzotint.worker.api.service import Service
from mezzotint.worker.migrate import migrate
from mezzotint.worker.ports import http_address, listen
from mezzotint.worker.settings import Settings

logger = logging.getLogger(__name__)

KEEP_ALIVE_S, SHUTDOWN_S = 15, 5
MAX_HEADER_BYTES = 32 * 1024


class _Server(uvicorn.Server):
    """Tells open answers to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service, self._address = service, address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("the gateway is ready at %s/v1 (Ctrl-C stops it)", self._address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping.set()
        await super().shutdown(sockets)


def serve_http(settings: Settings, host: str, port: int) -> None:
    """Serve. Raises ServiceError with one sentence when the address cannot be used, nobody could come in, or the
    database does not answer."""
    logs.configure(settings)
    service = make_service(settings)
    migrate(service.database)
    check_reachable(settings, host, service.database)
    bound = listen(host, port)
    config = uvicorn.Config(
        make_app(service, needs_token=needs_token(settings, host)), http=PatientProtocol, ws="none", lifespan="off",
        log_config=None, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=SHUTDOWN_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again once it has stopped
        signal.signal(number, lambda *_: None)
    _Server(config, service, http_address(host, port)).run(sockets=[bound])
