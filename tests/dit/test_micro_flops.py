"""The price of a pass of MicroDiT: against torch's own counter."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.dit.micro_config import PRESETS, MicroDiTConfig
from mezzotint.dit.micro_flops import micro_flops
from mezzotint.dit.microdit import MicroDiT

SMALL = MicroDiTConfig(
    sample_size=16, hidden_size=24, num_layers=5, head_dim=8, mlp_multiple=8, mixer_layers=2, mixer_size=16,
    num_experts=3, expert_capacity=1.5, text_size=6,
)
CONFIGS = {
    "all": SMALL,
    "no experts": replace(SMALL, num_experts=0),
    "a mixer as wide as the backbone": replace(SMALL, mixer_size=24),
    "no mixer": replace(SMALL, mixer_layers=0),
    "16 channels": replace(SMALL, in_channels=16),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("kept", "bypass"), [(None, None), (11, None), (11, (1, 3))])
@torch.no_grad()
def test_the_price_of_a_pass_is_what_torch_counts(
    name: str, kept: int | None, bypass: tuple[int, int] | None
) -> None:
    config = CONFIGS[name]
    network = MicroDiT(**asdict(config)).eval()
    x, y = torch.randn(1, config.in_channels, 8, 20), torch.randn(1, 1, 7, 6)
    keep = None if kept is None else torch.randperm(40)[None, :kept]
    # Attention runs as plain matrix products, since torch does not count its fused attention on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, torch.tensor([0.1]), y, keep=keep, bypass=bypass)
    assert micro_flops(config, (4, 10), 7, kept=kept, bypass=bypass) == counter.get_total_flops()


def test_masking_three_quarters_of_micro_tiny_saves_more_than_half() -> None:
    """256 tokens: the goal for its speed is set from this ratio."""
    config = PRESETS["micro-tiny-2"]
    assert micro_flops(config, (16, 16)) / micro_flops(config, (16, 16), kept=64) == pytest.approx(2.12, abs=0.01)
