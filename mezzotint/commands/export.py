"""Placeholder until the command is written in this sitting."""


def export() -> None:
    """(being written)"""
    raise SystemExit(1)
