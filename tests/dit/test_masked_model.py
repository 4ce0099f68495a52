"""The text-conditioned network with a patch-mixer, kept tokens and experts, apart from its arithmetic."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.dit.block_order import skip_modules
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.experts import Experts
from mezzotint.dit.model import DiT
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import SegmentLayout

CONFIG = DiTConfig(
    sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=5, num_heads=2, text_size=24,
    max_text_tokens=5, segments="0 + 1x[1,1,1,1] + 1", mixer_layers=2, num_experts=3, expert_capacity=1.5,
    attention="window", attention_tile=4, attention_window=8,
)
KEEP = torch.tensor([[3, 0, 40, 12, 7, 63], [15, 14, 1, 2, 8, 30]])


def grown(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    network = DiT(**asdict(config)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    text = torch.randn(2, 5, 24)
    return torch.randn(2, 3, 32, 32), torch.tensor([0.3, 0.8]), text, text.mean(1), torch.ones(2, 5, dtype=torch.bool)


def test_experts_are_in_every_second_block_but_the_last() -> None:
    network = grown(replace(CONFIG, num_layers=4, segments=None, mixer_layers=4))
    with_experts = [[isinstance(block.mlp, Experts) for block in blocks] for blocks in (network.mixer, network.blocks)]
    assert with_experts == [[False, True, False, True], [False, True, False, False]]


def test_a_fresh_network_returns_zero_and_learns_from_the_first_step() -> None:
    network = DiT(**asdict(CONFIG))
    out = network(*inputs(), grid=(4, 4), keep=KEEP)
    assert not out.any()
    out.sum().backward()
    assert network.final.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("attention", ["window", "routed"])
def test_checkpointing_gives_the_same_gradients(attention: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = grown(replace(CONFIG, attention=attention)).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*inputs(), grid=(4, 4), keep=KEEP).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("attention", ["window", "routed"])
@torch.no_grad()
def test_densities_patterns_and_experts_compile_without_a_graph_break(attention: Any) -> None:
    network = grown(replace(CONFIG, attention=attention))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs(), grid=(4, 4)), network(*inputs(), grid=(4, 4)))


@torch.no_grad()
def test_of_dropped_patches_nothing_is_said_in_components() -> None:
    """There the network's answer is a correction: without one, what the noisy coefficient itself says."""
    network = grown(replace(CONFIG, patch_space="components"))
    components = network.components
    assert components is not None
    maps, t = torch.randn(2, 12, 8, 8), torch.tensor([0.3, 0.8])
    out = network(maps, t, *inputs()[2:], in_components=True, grid=(4, 4), keep=KEEP)
    alone = maps.flatten(2).transpose(1, 2) * components.scales(t, CONFIG.noise_scale)[1]
    dropped = torch.ones(2, 64, dtype=torch.bool).scatter(1, KEEP, False)
    ours = out.flatten(2).transpose(1, 2)
    assert torch.equal(ours[dropped], alone[dropped])
    assert (ours[~dropped] != alone[~dropped]).any(1).all()


@torch.no_grad()
def test_modules_on_some_rows_of_a_batch_are_those_of_the_whole() -> None:
    """As a cache runs them. The last module's dense block and the top's are of one kind, yet tokens leave between."""
    network = grown(replace(CONFIG, attention="routed", attention_share_layers=2))
    given, whole = inputs(), []

    def each(embedded: Tensor, entering: Tensor, modules: Any) -> Tensor:
        whole.append(modules(None))
        return torch.cat([modules([0]), modules([1])])

    out = network(*given, grid=(4, 4), module_pass=each)
    alone = network(*given, grid=(4, 4), module_pass=lambda embedded, entering, modules: modules(None))
    torch.testing.assert_close(out, alone)
    assert whole[0].shape == (2, 5 + 64, 32)


@torch.no_grad()
def test_a_saved_network_comes_back_whole(tmp_path: Path) -> None:
    network = grown(CONFIG)
    network.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    assert again.shape == CONFIG
    assert torch.equal(again(*inputs(), grid=(4, 4)), network(*inputs(), grid=(4, 4)))


@torch.no_grad()
def test_a_dense_network_with_mixer_and_experts_can_be_cut() -> None:
    dense = grown(replace(CONFIG, segments=None))
    cut = recut(dense, SegmentLayout.parse("0 + 1x[1,1,1,1] + 1"))
    assert cut.shape == CONFIG
    assert torch.equal(cut.mixer[1].mlp.w1, dense.mixer[1].mlp.w1)
    assert torch.equal(cut.blocks[3].mlp.w2, dense.blocks[3].mlp.w2)
    assert cut(*inputs(), grid=(3, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": KEEP + 1}, "keep holds 64; it must hold numbers from 0 to 63"),
        ({"bypass": (0, 2)}, r"bypass is \(0, 2\) and keep is None"),
        ({"keep": KEEP, "bypass": (0, 2)}, r"bypass is \(0, 2\); it must be None with segments"),
        ({"keep": KEEP, "module_pass": skip_modules}, "module_pass is given with keep"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grown(CONFIG)(*inputs(), **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mixer_layers": -1}, "mixer_layers is -1; it must be 0 or more"),
        ({"num_experts": -2}, "num_experts is -2; it must be 0 or more"),
        ({"expert_capacity": 3.5}, "expert_capacity is 3.5; it must be at most num_experts, 3"),
        ({"experts_every": 0}, "experts_every is 0; it must be more than 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)
