"""How a command ends badly: one clear sentence on stderr and exit code 1."""

import sys
from typing import NoReturn


def fail(sentence: str) -> NoReturn:
    """Say what went wrong and exit with code 1. Usage errors (exit code 2) are typer's own."""
    print(f"mezzotint: {sentence}", file=sys.stderr)
    raise SystemExit(1)
