"""Jobs that ask for a class and have no prompt: accepted, drawn, stored and described like any other."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mezzotint.sampling.media import read_metadata
from mezzotint.sampling.request import RequestError
from mezzotint.sampling.torch_engine import TorchEngine
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.runner import Runner
from mezzotint.worker.storage import Storage


def run(service: Any, job_id: str) -> str:
    settings = service.settings
    return Runner(
        database=Database(settings.database_url), storage=Storage(settings.storage_url), events=Events(settings),
        engine=lambda: TorchEngine("cpu", "fp32"), worker="here", lease_s=60,
    ).run(job_id, 0)


def test_a_job_of_a_class_is_drawn_and_its_file_tells_the_class(service: Any, cut_class_model: Path) -> None:
    asked = {"class_label": "golden retriever", "model": str(cut_class_model), "num_inference_steps": 2, "seed": 3}
    job = service.client.submit(asked | {"density": "fast", "num_images": 2}, idempotency_key="once")
    assert job.request["prompt"] is None
    assert service.client.submit(asked | {"density": "fast", "num_images": 2}, idempotency_key="once").id == job.id
    assert run(service, job.id) == "succeeded"
    done = service.client.get(job.id)
    assert (done.state, done.model, len(done.outputs), done.flops > 0) == ("succeeded", str(cut_class_model), 2, True)
    image = Image.open(io.BytesIO(service.client.media(done.outputs[1].media_id)))
    assert image.size == (16, 16)
    metadata = read_metadata(image)
    assert metadata is not None
    assert {key: metadata["request"][key] for key in ("class_label", "prompt", "seed")} == {
        "class_label": "golden retriever", "prompt": None, "seed": 4
    }


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"class_label": 1000}, "class_label"), ({"class_label": 1, "prompt": "a cat"}, "prompt"), ({}, "prompt")],
)
def test_a_class_that_cannot_be_drawn_is_refused_before_there_is_a_job(
    service: Any, class_model: Path, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as refused:
        service.client.submit({"model": str(class_model), **fields})
    assert refused.value.field == field
    assert service.client.list().jobs == []
