"""Segments of token density in the text-conditioned network: text stays whole, image tokens are pooled."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.blocks import ModulatedBlock
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.flops import forward_flops
from mezzotint.dit.model import DiT
from mezzotint.dit.positions import rope_table
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import SegmentLayout
from mezzotint.dit.surroundings import Surroundings

LAYOUT = "1 + 2x[1,1,1,0] + 1"
SMALL = DiTConfig(
    sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=8, num_heads=2, text_size=24,
    max_text_tokens=5, segments=LAYOUT,
)
VARIANTS = {
    "joint": SMALL,
    "cross": replace(SMALL, text_conditioning="cross"),
    "rms and swiglu": replace(SMALL, norm="rms", mlp="swiglu"),
    "no qk-norm": replace(SMALL, qk_norm=False),
    "components and places": replace(SMALL, patch_space="components", place_embedding=True),
}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def grown(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    network = DiT(**asdict(config)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def inputs(height: int = 32, width: int = 32, batch: int = 2) -> Inputs:
    torch.manual_seed(1)
    text = torch.randn(batch, 5, 24)
    mask = torch.arange(5).expand(batch, -1) < 3
    x = torch.randn(batch, 3, height, width)
    return x, torch.linspace(0.2, 0.9, batch), text, text.mean(1), mask


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, (3, 4)), (8, 40, (1, 7)), (64, 16, (16, 4))])
@torch.no_grad()
def test_any_size_gives_a_picture_on_any_grid(name: str, height: int, width: int, grid: tuple[int, int]) -> None:
    out = grown(VARIANTS[name])(*inputs(height, width), grid=grid)
    assert out.shape == (2, 3, height, width)
    assert out.isfinite().all()
    assert out.std() > 0.01


@pytest.mark.parametrize("name", ["joint", "cross"])
@torch.no_grad()
def test_each_input_and_the_grid_matter(name: str) -> None:
    network, given = grown(VARIANTS[name]), inputs()
    out = network(*given, grid=(3, 4))
    for i in range(4):
        changed = list(given)
        changed[i] = given[i] * 0.5 if i != 2 else given[i].flip(0)
        assert (network(*changed, grid=(3, 4)) - out).abs().max() > 1e-4, f"input {i} changes nothing"
    assert (network(*given, grid=(4, 4)) - out).abs().max() > 1e-4
    assert torch.equal(network(*given), network(*given, grid=(8, 8)))


@pytest.mark.parametrize(("name", "text"), [("joint", 5), ("cross", 0)])
@torch.no_grad()
def test_only_image_tokens_are_pooled(name: str, text: int) -> None:
    network = grown(VARIANTS[name])
    counts: list[tuple[int, int | None]] = []

    def note(_: Any, given: tuple[torch.Tensor, torch.Tensor, Surroundings], out: torch.Tensor) -> None:
        other = given[2].other
        counts.append((out.shape[1] - text, None if other is None else other.shape[1] - text))

    for block in network.blocks:
        block.register_forward_hook(note)
    network(*inputs(), grid=(3, 4))
    module = [(12, 64), (12, None), (64, 12)]
    assert counts == [(64, None), *module, *module, (64, None)]


@torch.no_grad()
def test_text_goes_on_through_every_block_of_a_joint_sequence() -> None:
    """What a recovery block hands on as text is what the sparse blocks made of it, not what entered the module."""
    network = grown(SMALL)
    made: list[torch.Tensor] = []
    merged: list[torch.Tensor] = []
    network.blocks[2].register_forward_hook(lambda _, given, out: made.append(out[:, :5]))
    network.blocks[3].merge.register_forward_hook(lambda _, given, out: merged.append(out[:, :5]))
    network(*inputs(), grid=(3, 4))
    assert torch.equal(made[0], merged[0])


@pytest.mark.parametrize(("full", "cells"), [((8, 8), (4, 2)), ((6, 9), (4, 5)), ((5, 7), (5, 7))])
def test_a_pooled_token_is_turned_as_the_centre_of_its_cell(full: tuple[int, int], cells: tuple[int, int]) -> None:
    head_dim, theta = 8, 100.0
    cos, sin = rope_table(full, head_dim, theta, 2, cells=cells)
    places = torch.stack(torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in full), indexing="ij"))
    centres = torch.nn.functional.adaptive_avg_pool2d(places, cells).flatten(1)
    frequencies = torch.tensor([1.0, theta**-0.5], dtype=torch.float64)
    angles = torch.cat([axis[:, None] * frequencies for axis in centres], dim=1).repeat(1, 2)
    torch.testing.assert_close(cos[2:], angles.cos().float())
    torch.testing.assert_close(sin[2:], angles.sin().float())
    assert cos[:2].eq(1).all()
    assert sin[:2].eq(0).all()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = grown(SMALL).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        runs: list[int] = []
        network.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        network(*inputs(), grid=(3, 4)).square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append([p.grad for p in network.parameters()])
    assert all(g is not None for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@torch.no_grad()
def test_a_saved_network_comes_back_whole(tmp_path: Path) -> None:
    network, given = grown(SMALL), inputs()
    network.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    assert again.shape == SMALL
    assert torch.equal(again(*given, grid=(3, 4)), network(*given, grid=(3, 4)))


def test_a_fresh_network_returns_zero() -> None:
    torch.manual_seed(0)
    network = DiT(**asdict(SMALL))
    assert network(*inputs(), grid=(3, 4)).abs().max() == 0
    assert torch.equal(network.blocks[3].merge.from_dense.weight, torch.eye(32))
    assert not network.blocks[3].merge.from_sparse.weight.any()


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    network, given = grown(SMALL), inputs(batch=3)
    alone = torch.cat([network(*(part[i : i + 1] for part in given), grid=(3, 4)) for i in range(3)])
    torch.testing.assert_close(network(*given, grid=(3, 4)), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_compiles_without_a_graph_break() -> None:
    network, given = grown(replace(SMALL, num_layers=2, segments="0 + 1x[1,0,1,0] + 0")), inputs()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, grid=(3, 4)), network(*given, grid=(3, 4)))


@pytest.mark.parametrize("name", ["joint", "cross"])
@torch.no_grad()
def test_a_cut_network_starts_with_the_dense_ones_image_tokens(name: str) -> None:
    dense = grown(replace(VARIANTS[name], segments=None))
    cut = recut(dense, SegmentLayout.parse(LAYOUT))
    assert cut.shape == VARIANTS[name]
    source = dense.state_dict()
    qkv = source["blocks.1.attn.qkv.weight"]
    assert torch.equal(cut.blocks[1].attn.q.weight, qkv[:32])
    assert torch.equal(cut.blocks[1].attn.kv.weight, qkv[32:])
    assert torch.equal(cut.blocks[1].attn.k_norm.weight, source["blocks.1.attn.k_norm.weight"])
    assert torch.equal(cut.blocks[0].attn.v.weight, source["blocks.0.attn.qkv.weight"][64:])
    text = 5 if name == "joint" else 0
    merges: list[bool] = []
    for block in cut.modules():
        if isinstance(block, ModulatedBlock) and block.merge is not None:
            block.merge.register_forward_hook(
                lambda _, given, out: merges.append(torch.equal(given[1][:, text:], out[:, text:]))
            )
    cut(*inputs(), grid=(3, 4))
    assert merges == [True, True]


@torch.no_grad()
def test_a_cut_generation_block_does_on_all_tokens_what_the_dense_block_did() -> None:
    """On the full grid the pooled tokens are the dense ones, and so are their rotary positions."""
    dense = grown(replace(SMALL, segments=None))
    cut = recut(dense, SegmentLayout.parse("0 + 1x[1,6,1,0] + 0"))
    outs: dict[str, torch.Tensor] = {}
    for name, network in (("dense", dense), ("cut", cut)):
        network.blocks[6].register_forward_hook(lambda _, given, out, name=name: outs.__setitem__(name, out))
        network(*inputs(), grid=(8, 8))
    torch.testing.assert_close(outs["cut"], outs["dense"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, (3, 4)), (16, 40, (2, 5))])
@torch.no_grad()
def test_the_price_of_a_pass_is_what_torch_counts(name: str, height: int, width: int, grid: tuple[int, int]) -> None:
    config = VARIANTS[name]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        grown(config)(*inputs(height, width, batch=1), grid=grid)
    assert forward_flops(config, config.grid(height, width), sparse_grid=grid) == counter.get_total_flops()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="adds up to 8 blocks, and there are 9"):
        replace(SMALL, num_layers=9)
    with pytest.raises(ValueError, match=r"grid is \(9, 4\); it must be at most \(8, 8\)"):
        grown(SMALL)(*inputs(), grid=(9, 4))
    with pytest.raises(ValueError, match=r"grid is \(4, 4\); this network has no segments"):
        grown(replace(SMALL, segments=None))(*inputs(), grid=(4, 4))
    with pytest.raises(ValueError, match=r"grid is \(9, 4\)"):
        forward_flops(SMALL, (8, 8), sparse_grid=(9, 4))
