"""A real browser on a real `mezzotint up`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync",
)
START_S, STOP_S = 120, 60
PATIENCE_MS = 30_000
"""How long a test waits for what it expects to see; a busy machine is slow."""


class Up:
    """`mezzotint up` on a free port with a data folder of its own; it can be stopped and started again."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = folder / "data"
        self._log = folder / "log"
        self._environment = os.environ | environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything and wait until it says that it is ready."""
        command = ["up", "--data-dir", str(self.data), "--port", str(self.port), "--no-browser"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mezzotint", *command], env=self._environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )
        until = time.monotonic() + START_S
        while "is ready at" not in self.log():
            assert self._process.poll() is None, f"mezzotint up ended:\n{self.log()}"
            assert time.monotonic() < until, f"mezzotint up is not ready after {START_S} s:\n{self.log()}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as Ctrl-C does, and see that it ended."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def answers(self) -> bool:
        """Whether the page's server is there."""
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def make_up() -> Iterator[Callable[..., Up]]:
    """Start `mezzotint up` with environment variables; it is stopped at the end of the module."""
    made: list[tuple[Up, Path]] = []

    def make(**environment: str) -> Up:
        folder = Path(tempfile.mkdtemp(prefix="mzt-"))  # short enough for a unix socket
        up = Up(folder, **environment)
        made.append((up, folder))
        up.start()
        return up

    yield make
    for up, folder in made:
        up.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium of the system."""
    program = shutil.which("chromium")
    if program is None:
        missing = "chromium is not installed; `apt-get install chromium` gives these tests their browser."
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=program, args=[*CHROMIUM_OPTIONS])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Open an address on a device of its own (no shared cookies): visit(url, width=..., height=...)."""
    contexts = []

    def open_page(url: str, width: int = 1280, height: int = 800) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
