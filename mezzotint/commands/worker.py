"""Placeholder until the command is written in this sitting."""


def worker() -> None:
    """(being written)"""
    raise SystemExit(1)
