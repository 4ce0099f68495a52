"""A child process of `mezzotint up`: its log lines get a name in front, and stopping it leaves nothing."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LAST_LINES = 20
_printing = threading.Lock()


class Child:
    """One running process in a session of its own, so that the terminal's Ctrl-C reaches only `up`.

    Start it from the main thread: on Linux the child ends with the thread that made it.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start it. `name` stands before each of its lines."""
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = subprocess.Popen(
            list(command),
            env=os.environ | dict(environment or {}) | {"PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name=f"log-{name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id, which is also its session's and its group's."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def stop(self, patience_s: float) -> None:
        """Ask it to end; after `patience_s` seconds end its whole group."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            say(self.name, f"did not stop within {patience_s:.0f} s and was killed")
        # What a killed process left behind is in the same group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():
                self.last_lines.append(line.rstrip())
                say(self.name, line.rstrip())


_prctl: Callable[[int, int], int] | None = None
if sys.platform == "linux":
    _prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """On Linux, should `up` be killed outright, its children are, too. Runs in the new process.

    No gentler signal will do: with its output's reader gone, a child may hang while it says goodbye.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def say(name: str, line: str) -> None:
    """Print one line with a name in front, whole even when several children speak."""
    with _printing:
        print(f"{name:<7}| {line}", file=sys.stderr, flush=True)
