"""How commands print what they measured: one JSON object for programs, a table for people."""

from typing import Any

WIDE = 240


def print_json(report: dict[str, Any]) -> None:
    """To stdout, as one object and nothing else."""
    import json

    print(json.dumps(report, ensure_ascii=False))


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table with the keys of the first row as headings; None is a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for key in rows[0] if rows else ():
        table.add_column(key)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width to keep to, and a table takes no more than it needs
        console = Console(width=WIDE)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
