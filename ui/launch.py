"""The command line that starts the page. No Streamlit import here, so asking for it is free."""

import sys
from pathlib import Path

APP = Path(__file__).resolve().with_name("app.py")
GUARDED = APP.with_name("guarded.py")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


def command(host: str, port: int, *, needs_token: bool = False) -> list[str]:
    """Arguments that start the page on `host`:`port`; everything else is in ui/.streamlit/config.toml.

    needs_token: nothing is shown without one; MEZZOTINT_REQUIRE_TOKEN must be true in the page's environment.

    Python's -P keeps files of the working directory from being imported in place of libraries. On a loopback
    address only loopback names are accepted in the Host header, so that no foreign site can reach the page
    by rebinding its own name to this machine.
    """
    options = [f"--server.address={host}", f"--server.port={port}"]
    if host in LOOPBACK_HOSTS:
        options += [f"--server.allowedHosts={name}" for name in LOOPBACK_HOSTS]
    return [sys.executable, "-P", "-m", "streamlit", "run", str(GUARDED if needs_token else APP), *options]
