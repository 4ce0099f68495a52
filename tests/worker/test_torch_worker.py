"""A real network in a real worker: torch stays in the child that draws, and the model stays loaded."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mezzotint.sampling.media import read_metadata

pytestmark = pytest.mark.slow


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_network_draws_in_the_workers_child(make_service: Callable[..., Any], tiny_model: Path) -> None:
    service = make_service(engine="torch", device="cpu")
    service.start_broker()
    worker, intake = service.start_worker(), service.start_worker("intake")
    request = {"prompt": "a red apple", "model": str(tiny_model), "num_inference_steps": 2, "seed": 7}
    first, second = (
        service.client.wait(service.client.submit(request | {"prompt": prompt}).id, timeout_s=120)
        for prompt in ("a red apple", "a green pear")
    )
    assert first.state == second.state == "succeeded", service.log()
    assert (first.device, first.request["seed"]) == ("cpu", 7)
    assert first.attempt == second.attempt == 1
    assert isinstance(first.flops, int)
    assert first.flops > 0
    assert second.seconds["load"] < 0.05, "the model was loaded again"
    assert first.outputs[0].sha256 != second.outputs[0].sha256

    image = Image.open(io.BytesIO(service.client.media(first.outputs[0].media_id)))
    assert image.size == (32, 32)
    assert read_metadata(image)["model"]["fingerprint"]

    assert maps_torch(service.drawing_child(worker))
    assert not maps_torch(worker.pid)
    assert not maps_torch(intake.pid)
