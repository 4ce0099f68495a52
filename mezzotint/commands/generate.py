"""Placeholder until the command is written in this sitting."""


def generate() -> None:
    """(being written)"""
    raise SystemExit(1)
