"""Placeholder until the command is written in this sitting."""


def up() -> None:
    """(being written)"""
    raise SystemExit(1)
