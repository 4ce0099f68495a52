"""The page as a real process, started as the supervisor starts it."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mezzotint.ui import launch


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a running page, whose working directory holds a file named like a library."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    (tmp_path / "click.py").write_text("raise SystemExit('the wrong click')\n")
    environment = os.environ | {"MEZZOTINT_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)}
    process = subprocess.Popen(launch.command("127.0.0.1", free), cwd=tmp_path, env=environment)
    try:
        _wait(free, process)
        yield free
    finally:
        process.terminate()
        process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the page ended"
        assert time.monotonic() < until, "the page did not answer within 60 s"
        try:
            if status(port, "/_stcore/health", "127.0.0.1") == 200:
                return
        except OSError:
            time.sleep(0.2)


def status(port: int, path: str, host: str, **headers: str) -> int:
    """The status of a request that names `host` as the one it was sent to."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": f"{host}:{port}"} | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_foreign_name_bound_to_this_machine_does_not_reach_the_page(port: int) -> None:
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert status(port, "/", "localhost") == 200
    assert status(port, "/_stcore/stream", "localhost", **upgrade) == 101
    assert status(port, "/_stcore/stream", "rebound.example", **upgrade) == 403


def test_the_page_loads_without_torch() -> None:
    script = (
        "import sys, importlib, pkgutil, mezzotint.ui as ui\n"
        "names = [m.name for m in pkgutil.iter_modules(ui.__path__)]\n"
        "[importlib.import_module(f'mezzotint.ui.{n}') for n in names]\n"
        "print(sorted(names), 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "'composer'" in done.stdout
    assert done.stdout.strip().endswith("False")
