"""The arithmetic of a forward pass against torch's own counter on the real network."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.attention_cost import attention_cost, kept_attention_cost
from mezzotint.dit.config import DiTConfig, TextConditioning
from mezzotint.dit.flops import block_flops, forward_flops
from mezzotint.dit.kept_attention import kept_attention, sorted_by_tiles
from mezzotint.dit.model import DiT

SMALL = DiTConfig(
    sample_size=64, patch_size=16, patch_bottleneck=24, hidden_size=64, num_layers=3, num_heads=2,
    mlp_ratio=3.0, text_size=48, max_text_tokens=10,
)
CONFIGS = {
    "as in the experiments": SMALL,
    "without a bottleneck": replace(SMALL, patch_bottleneck=0),
    "places": replace(SMALL, place_embedding=True),
    "components": replace(SMALL, patch_space="components"),
    "swiglu": replace(SMALL, mlp="swiglu"),
    "a window": replace(SMALL, attention="window", attention_tile=4, attention_window=4),
    "a window, text aside": replace(
        SMALL, attention="window", attention_tile=4, attention_window=8, text_conditioning="cross"
    ),
    "rms": replace(SMALL, norm="rms"),
    "cross-attention to text": replace(SMALL, text_conditioning="cross"),
    "cross-attention and swiglu": replace(SMALL, text_conditioning="cross", mlp="swiglu"),
    "one layer": replace(SMALL, num_layers=1),
    "more text": replace(SMALL, max_text_tokens=77),
    "a mixer and experts": replace(SMALL, mixer_layers=2, num_experts=3, expert_capacity=1.5),
    "experts and a window": replace(
        SMALL, mixer_layers=2, num_experts=3, attention="window", attention_tile=4, attention_window=4
    ),
}


def counted(config: DiTConfig, height: int, width: int, num_text_tokens: int, **arguments: Any) -> int:
    """FLOPs that torch counts in one forward pass on one picture.

    Attention runs as plain matrix products, since torch does not count its fused attention on the CPU.
    """
    network = DiT(**asdict(config)).eval()
    x = torch.randn(1, config.in_channels, height, width)
    text = torch.randn(1, num_text_tokens, config.text_size)
    mask = torch.ones(1, num_text_tokens, dtype=torch.bool)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, torch.tensor([0.5]), text, text.mean(dim=1), mask, **arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
def test_the_price_of_a_pass_is_what_torch_counts(name: str, height: int, width: int) -> None:
    config = CONFIGS[name]
    real = counted(config, height, width, config.max_text_tokens)
    assert forward_flops(config, config.grid(height, width)) == real


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize(("keep", "conditioning"), [(0.3, "joint"), (0.3, "cross"), (0.01, "joint"), (1.0, "joint")])
def test_routing_is_priced_right_on_whole_tiles(keep: float, conditioning: TextConditioning, share: int) -> None:
    config = replace(
        SMALL, attention="routed", attention_tile=4, attention_keep=keep, text_conditioning=conditioning,
        attention_share_layers=share,
    )
    assert forward_flops(config, (8, 12)) == counted(config, 128, 192, config.max_text_tokens)


CUT = replace(SMALL, num_layers=6, segments="1 + 1x[1,2,1,0] + 1", mixer_layers=2, num_experts=3)


@pytest.mark.parametrize("conditioning", ["joint", "cross"])
@pytest.mark.parametrize(
    ("attention", "sparse", "kept"),
    [("full", (3, 5), None), ("full", (3, 5), 21), ("full", (8, 12), 21), ("window", (4, 8), None),
     ("window", (3, 5), None), ("routed", (4, 8), None), ("routed", (4, 8), 32), ("routed", (4, 8), 48)],
)
def test_densities_patterns_experts_and_kept_tokens_together(
    attention: Any, sparse: tuple[int, int], kept: int | None, conditioning: TextConditioning
) -> None:
    config = replace(CUT, attention=attention, attention_tile=4, attention_window=4, text_conditioning=conditioning)
    keep = None if kept is None else torch.randperm(96)[None, :kept]
    real = counted(config, 128, 192, 10, grid=sparse, keep=keep)
    assert forward_flops(config, (8, 12), sparse_grid=sparse, kept=kept) == real


@pytest.mark.parametrize(("attention", "kept"), [("full", 21), ("routed", 32)])
def test_bypassed_blocks_cost_what_their_tokens_do(attention: Any, kept: int) -> None:
    config = replace(SMALL, num_layers=5, num_experts=3, attention=attention, attention_tile=4, mixer_layers=1,
                     attention_share_layers=2)
    real = counted(config, 128, 192, 10, keep=torch.randperm(96)[None, :kept], bypass=(1, 4))
    assert forward_flops(config, (8, 12), kept=kept, bypass=(1, 4)) == real


def test_windows_over_kept_tokens_cost_their_mean() -> None:
    """Over all pairs of tokens that may be kept of a grid, what their layouts keep."""
    config = replace(SMALL, attention="window", attention_tile=4, attention_window=4, text_conditioning="cross")
    grid = (5, 8)
    keep = torch.combinations(torch.arange(40), 2)
    pattern = kept_attention(config, grid, sorted_by_tiles(config, grid, keep), 0)
    assert pattern is not None
    pairs = pattern.layout.kept_pairs() / len(keep)
    assert kept_attention_cost(config, grid, 0, 2).pairs == round(pairs)
    assert kept_attention_cost(config, grid, 0, 40).pairs == attention_cost(config, grid, 0).pairs


def test_the_shipped_shape_is_priced_right_too() -> None:
    config = DiTConfig(num_layers=2)
    real = counted(config, 256, 256, config.max_text_tokens)
    assert forward_flops(config, (8, 8)) == real


def test_fewer_text_tokens_cost_less_by_as_much_as_torch_counts() -> None:
    for config in (SMALL, CONFIGS["cross-attention to text"]):
        saved = counted(config, 64, 64, 10) - counted(config, 64, 64, 4)
        assert forward_flops(config, (4, 4), 10) - forward_flops(config, (4, 4), 4) == saved


def test_each_layer_adds_one_block() -> None:
    more = replace(SMALL, num_layers=SMALL.num_layers + 2)
    assert forward_flops(more, (4, 4)) - forward_flops(SMALL, (4, 4)) == 2 * block_flops(SMALL, (4, 4), 10)
