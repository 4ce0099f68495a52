"""Fixtures of the fault tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def hostile(make_service: Callable[..., Any]) -> Callable[..., Any]:
    """Make a service whose engine does what the prompt says (see hostile_engine.py)."""

    def make(**settings: Any) -> Any:
        return make_service(engine="hostile_engine:HostileEngine", **settings)

    return make


@pytest.fixture
def engine_path() -> dict[str, str]:
    """Environment in which a worker finds the hostile engine."""
    return {"PYTHONPATH": str(Path(__file__).parent)}


def _files(service: Any) -> list[Path]:
    return [path for path in (service.settings.data_dir / "media").rglob("*") if path.is_file()]


@pytest.fixture
def one_result() -> Callable[..., None]:
    """Asserts that a job succeeded once, and that the storage holds its one file and nothing else."""

    def check(service: Any, job_id: str, *, attempt: int) -> None:
        job = service.client.get(job_id)
        assert (job.state, job.attempt) == ("succeeded", attempt), service.log()
        [output] = job.outputs
        assert len(service.client.media(output.media_id)) == output.bytes
        [file] = _files(service)
        assert output.sha256 in file.name

    return check
