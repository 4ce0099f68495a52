"""Placeholder until the command is written in this sitting."""


def models() -> None:
    """(being written)"""
    raise SystemExit(1)
