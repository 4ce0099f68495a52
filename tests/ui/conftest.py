"""The page on a real job table in a temporary folder, without a broker or a worker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mezzotint.sampling.engine import Engine
from mezzotint.sampling.null_engine import NullEngine
from mezzotint.ui import connection
from mezzotint.ui.launch import APP
from mezzotint.worker.client import Client
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.runner import Runner
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage
from mezzotint.worker.views import JobView

Draw = Callable[..., JobView]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that describes a model with 64-pixel pictures and 32-pixel patches; it has no weights."""
    return str(describe_model(tmp_path / "small-model", sample_size=64, steps=4))


def describe_model(folder: Path, *, sample_size: int, steps: int, **settings: object) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"guidance_scale": 3.0, "num_inference_steps": steps}))
    config = {"sample_size": sample_size, "patch_size": 32, **settings}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def larger_model(tmp_path: Path) -> str:
    """The name of a model of the person's own, with 128-pixel pictures and 9 steps."""
    return describe_model(tmp_path / "own-models" / "larger", sample_size=128, steps=9).name


@pytest.fixture
def cut_model(tmp_path: Path) -> str:
    """The name of a model of the person's own with segments of token density, on 8 x 8 tokens."""
    layout = "1 + 2x[1,3,1,0] + 1"
    return describe_model(tmp_path / "own-models" / "cut", sample_size=256, steps=4, segments=layout).name


@pytest.fixture
def client(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Another client of the page's job table."""
    monkeypatch.setenv("MEZZOTINT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MEZZOTINT_ENGINE", "null")
    monkeypatch.setenv("MEZZOTINT_MODEL", model)
    monkeypatch.setenv("MEZZOTINT_MODELS_DIR", str(tmp_path / "own-models"))
    for name in ("BROKER_URL", "DATABASE_URL", "STORAGE_URL"):
        monkeypatch.delenv(f"MEZZOTINT_{name}", raising=False)
    connection.shared.clear()
    yield Client()
    connection.shared.clear()


@pytest.fixture
def page(client: Client) -> AppTest:
    """The page as a browser without history first gets it."""
    return AppTest.from_file(str(APP), default_timeout=30).run()


@pytest.fixture
def draw(client: Client) -> Draw:
    """Make an attempt at a waiting job, as a worker would, and return what became of it."""

    def attempt(job: JobView, engine: Engine | None = None) -> JobView:
        settings = Settings.load()
        runner = Runner(
            database=Database(settings.database_url),
            storage=Storage(settings.storage_url),
            events=Events(settings),
            engine=lambda: engine or NullEngine(),
            worker="test",
            lease_s=30,
        )
        runner.run(job.id, job.attempt)
        return client.get(job.id)

    return attempt
