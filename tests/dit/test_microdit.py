"""MicroDiT's network apart from its checkpoints: masking, bypassing, sizes, gradients, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.dit.micro_config import MicroDiTConfig, spread_evenly
from mezzotint.dit.microdit import MicroDiT

SMALL: dict[str, Any] = {
    "sample_size": 8, "hidden_size": 24, "num_layers": 4, "head_dim": 8, "mlp_multiple": 8, "mixer_layers": 2,
    "mixer_size": 16, "num_experts": 3, "expert_capacity": 1.5, "text_size": 6,
}


def grown(**changes: Any) -> MicroDiT:
    """Weights that are nowhere zero."""
    torch.manual_seed(0)
    network = MicroDiT(**SMALL | changes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def inputs(rows: int = 8, columns: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, rows, columns), torch.tensor([-0.5, 0.8]), torch.randn(2, 1, 5, 6)


KEEP = torch.tensor([[3, 0, 9, 12, 7], [15, 14, 1, 2, 8]])


def test_at_the_start_the_answer_is_zero() -> None:
    assert not MicroDiT(**SMALL)(*inputs()).any()


@torch.no_grad()
def test_all_inputs_matter_and_other_sizes_give_pictures() -> None:
    network, (x, t, y) = grown(), inputs()
    out = network(x, t, y)
    for changed in ((x * 0.5, t, y), (x, t + 0.3, y), (x, t, y.flip(2) * 0.5)):
        assert (network(*changed) - out).abs().max() > 1e-4
    assert network(*inputs(4, 12)).shape == (2, 4, 4, 12)
    assert torch.equal(network(x, torch.tensor([0.8]), y), network(x, torch.tensor([0.8, 0.8]), y))


@torch.no_grad()
def test_kept_tokens_go_through_the_backbone_alone() -> None:
    """The same as a backbone whose attention is masked, computed by hand from the parts."""
    network, (x, t, y) = grown(num_experts=0), inputs()
    text, condition = network._condition(t, y)
    tokens, _ = network._embed(x)
    tokens, text_of_mixer = network.mixer_in(tokens), network.mixer_text(text)
    for block in network.mixer:
        tokens = block(tokens, text_of_mixer, condition)
    wanted = torch.zeros(2, 16, 16)
    for picture in range(2):
        own = network.mixer_out(tokens[picture : picture + 1, KEEP[picture]])
        for block in network.blocks:
            own = block(own, text[picture : picture + 1], condition[picture : picture + 1])
        wanted[picture, KEEP[picture]] = network.final(own, condition[picture : picture + 1])[0]
    out = network(x, t, y, keep=KEEP)
    patches = F.pixel_unshuffle(out, 2).unflatten(1, (4, 4)).permute(0, 3, 4, 2, 1).reshape(2, 16, 16)
    torch.testing.assert_close(patches, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_order_of_the_kept_tokens_changes_nothing() -> None:
    network, given = grown(), inputs()
    torch.testing.assert_close(network(*given, keep=KEEP), network(*given, keep=KEEP.sort(dim=1).values))


@torch.no_grad()
def test_bypassing_tokens_come_back_behind_the_blocks() -> None:
    network, given = grown(), inputs()
    full = network(*given)
    everyone = torch.arange(16).expand(2, -1)
    assert torch.equal(network(*given, keep=everyone, bypass=(1, 3)), full)
    # All that a token that bypasses every block misses is those blocks: the last layer sees what the mixer gave.
    text, condition = network._condition(*given[1:])
    out = network(*given, keep=KEEP, bypass=(0, 4))
    tokens = network.mixer_in(network._embed(given[0])[0])
    for block in network.mixer:
        tokens = block(tokens, network.mixer_text(text), condition)
    untouched = network.final(network.mixer_out(tokens), condition)
    patches = F.pixel_unshuffle(out, 2).unflatten(1, (4, 4)).permute(0, 3, 4, 2, 1).reshape(2, 16, 16)
    others = torch.ones(2, 16, dtype=torch.bool).scatter(1, KEEP, False)
    torch.testing.assert_close(patches[others], untouched[others])
    dropped = F.pixel_unshuffle(network(*given, keep=KEEP), 2).unflatten(1, (4, 4)).permute(0, 3, 4, 2, 1)
    torch.testing.assert_close(patches[~others], dropped.reshape(2, 16, 16)[~others])


@torch.no_grad()
def test_guidance_with_a_time_for_all_and_kept_tokens() -> None:
    network, (x, t, y) = grown().double(), (given.double() for given in inputs())
    wanted = network(x, t, y, keep=KEEP)
    unwanted = network(x, t, torch.zeros_like(y), keep=KEEP)
    guided = network(x, t, y, keep=KEEP, guidance_scale=3.0)
    torch.testing.assert_close(guided, unwanted + 3 * (wanted - unwanted))
    torch.testing.assert_close(network(x, t[:1], y, guidance_scale=1.0), network(x, t[:1].expand(2), y))


@pytest.mark.parametrize("arguments", [{}, {"keep": KEEP}, {"keep": KEEP, "bypass": (1, 3)}])
def test_gradients_with_checkpointing_are_those_without(arguments: dict[str, Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = grown().train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*inputs(), **arguments).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


@torch.no_grad()
def test_a_saved_folder_gives_the_same_network(tmp_path: Path) -> None:
    network = grown(mlp_ratio=(1.0, 1.5, 1.5, 2.0))
    network.save_pretrained(tmp_path)
    again = MicroDiT.from_pretrained(tmp_path)
    assert again.shape == network.shape
    assert torch.equal(again(*inputs()), network(*inputs()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": KEEP.int()}, r"keep is torch.int32 \[2, 5\]; it must be int64 \[2, kept tokens\]"),
        ({"keep": KEEP[:1]}, r"keep is of shape \[1, 5\]"),
        ({"keep": torch.arange(17).expand(2, -1)}, r"keep is of shape \[2, 17\]"),
        ({"keep": KEEP + 1}, "keep holds 16; it must hold numbers from 0 to 15"),
        ({"keep": KEEP - 1}, "keep holds -1"),
        ({"keep": torch.zeros(2, 3, dtype=torch.int64)}, "keep names a token twice"),
        ({"bypass": (0, 2)}, r"bypass is \(0, 2\) and keep is None"),
        ({"keep": KEEP, "bypass": (2, 5)}, r"bypass is \(2, 5\); it must be .* of 4 blocks"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grown()(*inputs(), **arguments)


def test_text_of_another_shape_is_refused() -> None:
    x, t, y = inputs()
    with pytest.raises(ValueError, match=r"y is of shape \[2, 5, 6\]; it must be \[2, 1, text tokens, 6\]"):
        grown()(x, t, y[:, 0])


def test_ratios_are_spread_evenly() -> None:
    assert spread_evenly((0.5, 1.0), 5) == (0.5, 0.625, 0.75, 0.875, 1.0)
    assert spread_evenly((3.0, 1.0, 2.0), 3) == (3.0, 1.0, 2.0)
    shapes = MicroDiTConfig(**SMALL).block_shapes
    assert [shape.attention_size for shape in shapes] == [16, 16, 32, 24]  # whole pairs of heads, but for the whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mlp_ratio": (1.0, 2.0, 3.0)}, "mlp_ratio is .* two positive numbers, or one for each of the 4 layers"),
        ({"num_experts": -1}, "num_experts is -1; it must be 0 or more"),
        ({"expert_capacity": 4.0}, "expert_capacity is 4.0; it must be at most num_experts, 3"),
        ({"mixer_size": 20}, "mixer_size is 20; it must be a multiple of head_dim 8"),
        ({"sample_size": 7}, "sample_size is 7; it must be a multiple of patch_size 2"),
        ({"position_scale": 0.0}, "position_scale is 0.0; it must be more than 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MicroDiTConfig(**SMALL | change)
