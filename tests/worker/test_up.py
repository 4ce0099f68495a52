"""`mezzotint up` as a person runs it: a real process with broker, workers and page of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import redis

pytestmark = pytest.mark.slow

READY_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class House:
    """One `mezzotint up` of a service."""

    def __init__(self, service: Any, until: Callable[..., None], *options: str) -> None:
        self.service, self.until, self.port = service, until, free_port()
        self.process = service.start("up", "--no-browser", "--port", str(self.port), *options)

    def wait_until_ready(self) -> None:
        self.until(lambda: "Mezzotint is ready at" in self.service.log(), READY_S, self.service.log)

    def processes(self) -> dict[int, str]:
        """The processes that carry this data folder in their command or their environment."""
        mark = str(self.service.settings.data_dir).encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                if mark in command or mark in (folder / "environ").read_bytes():
                    found[int(folder.name)] = command.replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found


@pytest.fixture
def make_house(service: Any, until: Callable[..., None]) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def make(*options: str) -> House:
        houses.append(House(service, until, *options))
        return houses[-1]

    yield make
    left: dict[int, str] = {}
    for house in houses:
        house.process.send_signal(signal.SIGTERM)
        house.process.wait(60)
        left = house.processes()
    assert not left


def run(service: Any, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", *command], env=os.environ | service.settings.environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )


def test_up_draws_refuses_a_second_and_leaves_no_process(
    service: Any, make_house: Callable[..., House]
) -> None:
    house = make_house()
    house.wait_until_ready()

    with urlopen(f"http://127.0.0.1:{house.port}/", timeout=60) as page:
        assert page.status == 200
    with urlopen(f"http://127.0.0.1:{house.port + 1}/v1/jobs", timeout=60) as answer:
        assert json.load(answer)["jobs"] == []
    job = service.client.submit(service.request())
    assert service.client.wait(job.id, timeout_s=60).state == "succeeded", service.log()

    second = run(service, "up", "--no-browser", "--port", str(free_port()))
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"already up on {service.settings.data_dir} (process {house.process.pid})" in second.stderr

    names = " ".join(house.processes().values())
    assert all(part in names for part in ("valkey-server", "streamlit", "mezzotint serve", "--queues image",
                                           "--queues intake"))
    house.process.send_signal(signal.SIGINT)
    assert house.process.wait(60) == 0, service.log()
    assert house.processes() == {}
    order = [service.log().index(f"stopping the {part}") for part in ("page", "gateway", "worker", "intake", "broker")]
    assert order == sorted(order)


def test_the_broker_of_up_is_private_and_listens_on_no_port(
    service: Any, make_house: Callable[..., House]
) -> None:
    make_house().wait_until_ready()
    path = service.settings.socket_path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    server = redis.Redis(unix_socket_path=str(path))
    assert server.config_get("port") == {"port": "0"}
    wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    assert {name: server.config_get(name)[name] for name in wanted} == wanted


def test_a_part_that_dies_is_started_again_and_jobs_go_on(
    service: Any, make_house: Callable[..., House], until: Callable[..., None]
) -> None:
    house = make_house()
    house.wait_until_ready()
    for part in ("valkey-server", "--queues image", "mezzotint serve", "streamlit"):
        [pid] = [pid for pid, command in house.processes().items() if part in command]
        os.kill(pid, signal.SIGKILL)
        until(lambda p=part: any(p in c for c in house.processes().values()), 30, service.log)
    job = service.client.submit(service.request())
    assert service.client.wait(job.id, timeout_s=90).state == "succeeded", service.log()
    assert service.log().count("ended unexpectedly") == 4
    assert house.process.poll() is None


def status(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_others_are_let_in_with_a_token_to_page_and_gateway(
    service: Any, make_house: Callable[..., House]
) -> None:
    made = json.loads(run(service, "tokens", "create", "phone", "--json").stdout)
    house = make_house("--host", "0.0.0.0")
    house.wait_until_ready()
    page, jobs = f"http://127.0.0.1:{house.port}/", f"http://127.0.0.1:{house.port + 1}/v1/jobs"
    assert (status(page), status(jobs)) == (401, 401)
    assert status(page, Cookie=f"mezzotint_token={made['token']}") == 200
    assert status(jobs, Authorization=f"Bearer {made['token']}") == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
def test_a_killed_up_takes_its_parts_along_and_can_be_started_again(
    service: Any, make_house: Callable[..., House], until: Callable[..., None]
) -> None:
    house = make_house()
    house.wait_until_ready()
    house.process.kill()
    house.process.wait()
    until(lambda: not house.processes(), 30, lambda: str(house.processes()))
    (service.folder / "log").unlink()
    make_house().wait_until_ready()
    job = service.client.submit(service.request())
    assert service.client.wait(job.id, timeout_s=60).state == "succeeded", service.log()


def test_a_busy_port_is_named_and_nothing_is_started(service: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = run(service, "up", "--no-browser", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert not service.settings.socket_path.exists()


@pytest.mark.parametrize("command", [["up", "--no-browser", "--port", "0"], ["worker"]])
def test_a_broker_that_is_not_there_is_told_in_one_sentence(service: Any, command: list[str]) -> None:
    port = str(free_port())
    command = [port if word == "0" else word for word in command]
    done = run(service, *command, "--broker-url", "redis://:secret@127.0.0.1:9/0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the broker at redis://127.0.0.1:9/0 does not answer" in done.stderr


def test_up_works_with_a_server_of_ones_own_on_tcp(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    from mezzotint.worker import broker

    port = free_port()
    service = make_service(broker_url=f"redis://:secret@127.0.0.1:{port}/3")
    server = subprocess.Popen(
        [broker.binary(), "--port", str(port), "--requirepass", "secret", "--save", ""],
        stdout=subprocess.DEVNULL, cwd=service.folder,
    )
    try:
        until(lambda: _answers(port), 20)
        house = House(service, until)
        house.wait_until_ready()
        job = service.client.submit(service.request())
        assert service.client.wait(job.id, timeout_s=60).state == "succeeded", service.log()
        assert "valkey-server" not in " ".join(house.processes().values())
        assert redis.Redis(port=port, password="secret", db=3).keys("mezzotint:*")
        house.process.send_signal(signal.SIGTERM)
        assert house.process.wait(60) == 0
        assert house.processes() == {}
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
