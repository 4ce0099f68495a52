"""Metrics as JSON lines, one a step; a run that goes on from a checkpoint drops the lines after it."""

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """RUN/metrics.jsonl."""

    def __init__(self, path: Path, next_step: int) -> None:
        """Keep the lines before `next_step`, so that no step stands twice."""
        kept = [line for line in _lines(path) if line["step"] < next_step]
        whole = path.with_suffix(".unfinished")  # a kill in the middle of this leaves the old file
        whole.write_text("".join(json.dumps(line) + "\n" for line in kept))
        whole.replace(path)
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        """Append one line and hand it to the system."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file."""
    return list(_lines(path))


def _lines(path: Path) -> list[dict[str, Any]]:
    """A kill may leave half a line at the end; it is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
