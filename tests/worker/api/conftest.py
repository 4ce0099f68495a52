"""A real gateway process on a real broker and job table, and callers of it."""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

READY_S = 120


@dataclass(frozen=True)
class Answer:
    """What came back, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The inside of an error, which must have the one shape of all of them."""
        shown = self.json
        assert shown.keys() == {"error"}
        assert shown["error"].keys() == {"code", "message", "hint"}
        message = shown["error"]["message"]
        assert message.isprintable()
        assert len(message) <= 500
        assert message.endswith((".", ")"))
        assert "Traceback" not in message
        assert self.headers["content-type"] == "application/json"
        return shown["error"]


class Gateway:
    """One `mezzotint serve` of a service."""

    def __init__(self, service: Any, *options: str, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.service = service
        self.model = Path(service.model).name
        environment = {"MEZZOTINT_MODELS_DIR": str(service.folder), **environment}
        self.process: subprocess.Popen[bytes] = service.start(
            "serve", "--port", str(self.port), *options, **environment
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> "Gateway":
        _until(lambda: self.process.poll() is not None or self._is_ready(), READY_S, self.service.log)
        assert self.process.poll() is None, self.service.log()
        return self

    def _is_ready(self) -> bool:
        return f":{self.port}/v1" in self.service.log()

    def job(self, **fields: Any) -> dict[str, Any]:
        """A small request, with its model by name."""
        return {"prompt": "a red apple", "model": self.model, "num_inference_steps": 3} | fields

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, timeout_s: float = 120,
        **headers: str,
    ) -> Answer:
        """Call it; a body that is no bytes is sent as JSON. Headers by name with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} | sent
        if token:
            sent["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            lower = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, lower, answer.read())
        finally:
            connection.close()

    def raw(self, data: bytes, timeout_s: float = 120) -> bytes:
        """Send bytes and read until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received

    def submit(self, *, token: str | None = None, **fields: Any) -> Any:
        answer = self.call("POST", "/v1/jobs", self.job(**fields), token=token)
        assert answer.status == 201, answer
        return answer.json


def _until(met: Callable[[], object], seconds: float, tell: Callable[[], str]) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until, tell()
        time.sleep(0.05)


@pytest.fixture
def make_gateway() -> Callable[..., Gateway]:
    """Start a gateway of a service: make_gateway(service, *options, **environment)."""

    def make(service: Any, *options: str, **environment: str) -> Gateway:
        return Gateway(service, *options, **environment).wait_until_ready()

    return make


@pytest.fixture(scope="module")
def lasting_gateway(make_lasting_service: Callable[..., Any]) -> Gateway:
    """A gateway with a broker and a fast worker, for a whole module."""
    service = make_lasting_service(null_step_s=0)
    service.start_broker()
    service.start_worker()
    return Gateway(service).wait_until_ready()


@pytest.fixture
def gateway(service: Any, make_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway on a broker, without a worker."""
    service.start_broker()
    return make_gateway(service)


@pytest.fixture
def events() -> Callable[[bytes], Iterator[dict[str, Any]]]:
    """Read server-sent events out of a body: a dict of id, event and data each, comments left out."""

    def read(body: bytes) -> Iterator[dict[str, Any]]:
        for block in body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                yield {**fields, "data": json.loads(fields["data"])}

    return read
