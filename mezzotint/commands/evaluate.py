"""Placeholder until the command is written in this sitting."""


def evaluate() -> None:
    """(being written)"""
    raise SystemExit(1)
