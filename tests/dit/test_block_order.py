"""The order of blocks, and what may stand in the place of the sparse-dense modules, in every kind of network."""

import inspect
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.block_order import RunModules, skip_modules
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.flops import forward_flops
from mezzotint.dit.latent_config import ClassDiTConfig, PixArtConfig, VideoDiTConfig
from mezzotint.dit.latent_flops import latent_flops
from mezzotint.dit.model import DiT
from mezzotint.dit.pixart import PixArt
from mezzotint.dit.segment_layout import module_span
from mezzotint.dit.video_dit import VideoDiT

LAYOUT = "1 + 2x[1,1,1,1] + 2"
GRID = (3, 4)
TEXT = {
    "sample_size": 32, "patch_size": 4, "patch_bottleneck": 12, "hidden_size": 32, "num_layers": 11, "num_heads": 2,
    "text_size": 24, "max_text_tokens": 5, "segments": LAYOUT,
}
LATENT = {"sample_size": 16, "hidden_size": 24, "num_layers": 11, "num_heads": 2, "segments": LAYOUT}
CONFIGS: dict[str, Any] = {
    "joint": DiTConfig(**TEXT),
    "cross": DiTConfig(**TEXT, text_conditioning="cross"),
    "components": DiTConfig(**TEXT, patch_space="components", place_embedding=True),
    "class": ClassDiTConfig(**LATENT, num_classes=5),
    "class, an embedding a block": ClassDiTConfig(**LATENT, num_classes=5, condition_per_block=True),
    "pixart": PixArtConfig(**LATENT, text_size=24),
    "video": VideoDiTConfig(**LATENT | {"num_layers": 22}, num_frames=2),
}
CLASSES = {DiTConfig: DiT, ClassDiTConfig: ClassDiT, PixArtConfig: PixArt, VideoDiTConfig: VideoDiT}


def grown(config: Any) -> nn.Module:
    torch.manual_seed(0)
    made = CLASSES[type(config)]
    known = inspect.signature(made.__init__).parameters
    network = made(**{name: value for name, value in asdict(config).items() if name in known}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def call(network: nn.Module, rows: slice = slice(None), **settings: Any) -> Tensor:
    """Three samples, of which some are passed through the network."""
    torch.manual_seed(1)
    t, text, labels = torch.tensor([0.2, 0.5, 0.9])[rows], torch.randn(3, 5, 24)[rows], torch.tensor([1, 4, 2])[rows]
    mask = (torch.arange(5) < torch.tensor([[3], [5], [2]]))[rows]
    with torch.no_grad():
        if isinstance(network, DiT):
            return network(torch.randn(3, 3, 32, 32)[rows], t, text, text.mean(1), mask, grid=GRID, **settings)
        x, timestep = torch.randn(3, 4, 16, 16)[rows], t * 1000
        if isinstance(network, PixArt):
            return network(x, timestep, text, mask, grid=GRID, **settings)
        if isinstance(network, VideoDiT):
            return network(x[:, None] * torch.tensor([1.0, 0.5])[:, None, None, None], timestep, grid=GRID, **settings)
        return network(x, timestep, labels, grid=GRID, **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_running_the_modules_where_they_are_changes_nothing(name: str) -> None:
    network = grown(CONFIGS[name])
    assert torch.equal(call(network, module_pass=lambda before, entering, run: run(None)), call(network))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_handed_over_are_the_dense_tokens_around_the_modules(name: str) -> None:
    network, seen = grown(CONFIGS[name]), []
    span = module_span(LAYOUT)
    assert span == range(1, 9)
    inputs: dict[int, Tensor] = {}
    for index, block in enumerate(network.blocks):
        block.register_forward_pre_hook(lambda _, given, index=index: inputs.__setitem__(index, given[0]))

    def keep(before: Tensor, entering: Tensor, run: RunModules) -> Tensor:
        seen.extend([before, entering, run(None)])
        return seen[-1]

    call(network, module_pass=keep)
    for given, index in zip(seen, (0, 1, 9), strict=True):
        if index == 1:  # the first generation block is handed pooled tokens; the last block below left these
            assert given.shape == inputs[0].shape
            assert not torch.equal(given, inputs[0])
        else:
            assert torch.equal(given, inputs[index])


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_can_run_on_some_rows_of_a_batch(name: str) -> None:
    """Their rows come out as alone; the others leave as they entered."""
    network = grown(CONFIGS[name])

    def last_two(before: Tensor, entering: Tensor, run: RunModules) -> Tensor:
        leaving = entering.clone()
        leaving[[2, 1]] = run([2, 1])
        return leaving

    out = call(network, module_pass=last_two)
    for i in (1, 2):
        torch.testing.assert_close(out[i : i + 1], call(network, slice(i, i + 1)), atol=1e-5, rtol=1e-4)
    skipped = call(network, slice(0, 1), module_pass=skip_modules)
    torch.testing.assert_close(out[:1], skipped, atol=1e-5, rtol=1e-4)
    assert (skipped - call(network, slice(0, 1))).abs().max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_the_price_without_modules_is_what_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(grown(config), slice(0, 1), module_pass=skip_modules)
    if isinstance(config, DiTConfig):
        price = forward_flops(config, (8, 8), sparse_grid=GRID, modules=False)
        assert price < forward_flops(config, (8, 8), sparse_grid=GRID)
    else:
        text = {"num_text_tokens": 5} if isinstance(config, PixArtConfig) else {}
        price = latent_flops(config, (8, 8), GRID, modules=False, **text)
        assert price < latent_flops(config, (8, 8), GRID, **text)
    assert price == counter.get_total_flops()


def test_a_network_without_segments_has_no_modules_to_stand_in_for() -> None:
    network, text = grown(DiTConfig(**TEXT | {"segments": None})), torch.randn(1, 5, 24)
    with pytest.raises(ValueError, match="without segments has no sparse-dense token modules"):
        network(torch.randn(1, 3, 32, 32), torch.ones(1), text, text.mean(1), module_pass=skip_modules)


def test_a_layout_knows_the_blocks_of_its_modules() -> None:
    assert module_span("2 + 4x[1,3,1,1] + 3") == range(2, 26)
    assert module_span("0 + 1x[1,0,1,0] + 0") == range(2)
