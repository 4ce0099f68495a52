"""What changes from step to step costs nothing beside its passes: no compiling again, and no memory that grows."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch._dynamo.testing import CompileCounter

from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline

STEPS = 8
SETTINGS: dict[str, dict[str, str]] = {
    "density": {"density": "fast"},
    "density guidance": {"density": "balanced", "guidance_density": "fast"},
    "path-drop": {"guidance_density": "skip"},
    "first-block": {"density": "fast", "cache": "first-block:0.68"},
    "taylor": {"density": "fast", "guidance_density": "balanced", "cache": "taylor:3"},
}


@pytest.fixture
def pipeline(cut_pipeline: Pipeline) -> Pipeline:
    """A network as small as segments allow, on 8 x 8 tokens, and of its own, so that it can be compiled."""
    torch.manual_seed(0)
    network = DiT(
        sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=4, num_heads=2,
        segments="1 + 1x[1,0,1,0] + 1",
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pipeline = Pipeline(network, FlowMatchEulerDiscreteScheduler(), guidance_scale=2.0)
    pipeline.use_text_encoder(cut_pipeline.text_encoder)
    return pipeline


@pytest.fixture
def compiles() -> Iterator[CompileCounter]:
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def draw(pipeline: Pipeline, callback: Callable[..., None] | None = None, **settings: Any) -> None:
    pipeline("a cat", seed=3, num_inference_steps=STEPS, callback=callback, **settings)


def kinds_of_passes(network: DiT) -> tuple[set[Any], torch.utils.hooks.RemovableHandle]:
    """The distinct (rows, grid) of all passes, as they come."""
    seen: set[Any] = set()

    def look(_: torch.nn.Module, given: tuple[torch.Tensor, ...], settings: dict[str, Any]) -> None:
        seen.add((len(given[0]), settings["grid"]))

    return seen, network.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["density", "density guidance"])
def test_a_compiled_network_is_compiled_once_a_grid_and_never_at_a_second_drawing(
    pipeline: Pipeline, compiles: CompileCounter, name: str
) -> None:
    kinds, hook = kinds_of_passes(pipeline.transformer)
    draw(pipeline, **SETTINGS[name])
    hook.remove()
    assert len(kinds) > 1
    pipeline.transformer.compile(backend=compiles, fullgraph=True)
    draw(pipeline, **SETTINGS[name])
    first = compiles.frame_count
    assert 1 <= first <= len(kinds)
    draw(pipeline, **SETTINGS[name])
    assert compiles.frame_count == first


@pytest.fixture
def from_here_on() -> Iterator[None]:
    """Objects that live already are not counted, which takes long: gc does not list them while they are frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_bytes() -> int:
    """Bytes of all tensors that were made since and live, each storage counted once."""
    storages = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.usefixtures("from_here_on")
@pytest.mark.parametrize("name", SETTINGS)
def test_memory_grows_neither_over_steps_nor_over_drawings(pipeline: Pipeline, name: str) -> None:
    """Once every kind of step has run, another one holds as many bytes as the last."""
    draw(pipeline, **SETTINGS[name])  # what is kept for a grid is kept now
    gc.collect()
    before = live_bytes()
    held: list[list[int]] = []
    for _ in range(3):
        steps: list[int] = []
        draw(pipeline, lambda *_, steps=steps: steps.append(live_bytes()), **SETTINGS[name])
        held.append(steps)
        gc.collect()
        assert live_bytes() == before
    assert held[1] == held[2] == held[0]
    # In the end every row of a cache has the two runs that it keeps; three steps, so that taylor runs in one of them.
    assert len(set(held[0][-3:])) == 1
