"""Keeps the parts of `mezzotint up` running, and stops them in order."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from mezzotint.worker.child import Child, say
from mezzotint.worker.errors import ServiceError

START_S = 120.0
LOOK_EVERY_S = 0.2
MAX_RESTARTS, WITHIN_S = 5, 60.0


class PartFailed(ServiceError):
    """A part did not start, or ended again and again."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: how it starts, how to see that it is ready, and how long it may take to stop."""

    name: str
    start: Callable[[], Child]
    is_ready: Callable[[Child], bool]
    stop_s: float


@dataclass(kw_only=True)
class _Running:
    part: Part
    child: Child
    restarts: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RESTARTS))


class Supervisor:
    """Starts parts in the order given to `start` and stops them in the reverse order."""

    def __init__(self) -> None:
        """Takes over SIGINT, SIGTERM and SIGHUP: each means to stop. Only in the main thread."""
        self._stopping = threading.Event()
        self._running: list[_Running] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def start(self, parts: Sequence[Part]) -> bool:
        """Start some parts side by side and wait until all are ready; False when told to stop meanwhile.

        Raises PartFailed when one ends or is not ready after two minutes.
        """
        begun = []
        for part in parts:
            if self._stopping.is_set():
                return False
            begun.append(_Running(part=part, child=part.start()))
            self._running.append(begun[-1])
        until = time.monotonic() + START_S
        for running in begun:
            while not running.part.is_ready(running.child):
                if self._stopping.wait(LOOK_EVERY_S):
                    return False
                self._check_start(running, until)
        return True

    def _check_start(self, running: _Running, until: float) -> None:
        code = running.child.exit_code()
        if code is not None:
            raise PartFailed(f"the {running.part.name} ended while it started{_said(running.child, code)}.")
        if time.monotonic() > until:
            raise PartFailed(f"the {running.part.name} was not ready within {START_S:.0f} s; see its log.")

    def watch(self) -> None:
        """Keep everything running until told to stop. Raises PartFailed when a part cannot be kept up."""
        while not self._stopping.wait(LOOK_EVERY_S):
            for running in self._running:
                code = running.child.exit_code()
                if code is not None:
                    self._restart(running, code)

    def _restart(self, running: _Running, code: int) -> None:
        now = time.monotonic()
        if len(running.restarts) == MAX_RESTARTS and now - running.restarts[0] < WITHIN_S:
            raise PartFailed(
                f"the {running.part.name} ended {MAX_RESTARTS + 1} times within {WITHIN_S:.0f} s"
                f"{_said(running.child, code)}."
            )
        running.restarts.append(now)
        say("up", f"the {running.part.name} ended unexpectedly (exit code {code}); starting it again")
        running.child.stop(0)  # takes what is left of its group along
        running.child = running.part.start()

    def stop(self) -> None:
        """Stop every part, the last started first."""
        while self._running:
            running = self._running.pop()
            say("up", f"stopping the {running.part.name}")
            running.child.stop(running.part.stop_s)


def _said(child: Child, code: int) -> str:
    last = f': "{child.last_lines[-1]}"' if child.last_lines else ""
    return f" (exit code {code}{last})"
