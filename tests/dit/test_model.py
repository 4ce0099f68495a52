"""The network: shapes, variants, what it may depend on and what it may not, saving, and adapters."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from mezzotint.dit.config import PRESETS, DiTConfig
from mezzotint.dit.layers import patchify, unpatchify
from mezzotint.dit.model import DiT
from mezzotint.dit.surroundings import Surroundings

SMALL = DiTConfig(
    sample_size=32, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=2, num_heads=2,
    text_size=24, max_text_tokens=5,
)
VARIANTS = {
    "joint": SMALL,
    "cross": replace(SMALL, text_conditioning="cross"),
    "rms": replace(SMALL, norm="rms"),
    "swiglu": replace(SMALL, mlp="swiglu"),
    "no bottleneck": replace(SMALL, patch_bottleneck=0),
    "no qk-norm": replace(SMALL, qk_norm=False),
    "predicts velocity": replace(SMALL, prediction="v"),
    "window": replace(SMALL, attention="window", attention_tile=4, attention_window=4),
    "routed": replace(SMALL, attention="routed", attention_tile=4, attention_keep=0.3),
    "places": replace(SMALL, place_embedding=True),
    "components": replace(SMALL, patch_space="components"),
}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def grown(config: DiTConfig, seed: int = 0) -> DiT:
    """A network whose zero-initialised parts have moved, as after training."""
    torch.manual_seed(seed)
    network = DiT(**asdict(config)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def inputs(config: DiTConfig, batch: int = 2, height: int = 32, width: int = 32) -> Inputs:
    torch.manual_seed(1)
    text = torch.randn(batch, config.max_text_tokens, config.text_size)
    mask = torch.arange(config.max_text_tokens).expand(batch, -1) < 3
    text = text * mask[..., None]
    x = torch.randn(batch, 3, height, width)
    return x, torch.linspace(0.2, 0.9, batch), text, text.sum(1) / 3, mask


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 40), (64, 16)])
def test_any_size_on_the_patch_gives_a_picture_of_that_size(name: str, height: int, width: int) -> None:
    config = VARIANTS[name]
    out = grown(config)(*inputs(config, height=height, width=width))
    assert out.shape == (2, 3, height, width)
    assert out.isfinite().all()
    assert out.std() > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_each_input_matters(name: str) -> None:
    config = VARIANTS[name]
    network, given = grown(config), inputs(config)
    out = network(*given)
    for i in range(4):
        changed = list(given)
        changed[i] = given[i] * 0.5 if i != 2 else given[i].flip(0)
        assert (network(*changed) - out).abs().max() > 1e-4, f"input {i} changes nothing"


@pytest.mark.parametrize("name", ["joint", "cross"])
def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    config = VARIANTS[name]
    network, given = grown(config), inputs(config, batch=3)
    alone = torch.cat([network(*(part[i : i + 1] for part in given)) for i in range(3)])
    torch.testing.assert_close(network(*given), alone, atol=1e-5, rtol=1e-4)


def test_cross_attention_does_not_see_padding() -> None:
    config = VARIANTS["cross"]
    network = grown(config)
    x, t, text, pooled, mask = inputs(config)
    dirty = torch.where(mask[..., None], text, torch.full_like(text, 7.0))
    torch.testing.assert_close(network(x, t, dirty, pooled, mask), network(x, t, text, pooled, mask))
    assert (network(x, t, dirty, pooled, None) - network(x, t, text, pooled, None)).abs().max() > 1e-4


def test_cross_attention_without_a_prompt_is_finite() -> None:
    config = VARIANTS["cross"]
    x, t, text, pooled, mask = inputs(config)
    out = grown(config)(x, t, torch.zeros_like(text), torch.zeros_like(pooled), torch.zeros_like(mask))
    assert out.isfinite().all()


def test_a_fresh_network_returns_zero_and_its_blocks_change_nothing() -> None:
    torch.manual_seed(0)
    network = DiT(**asdict(SMALL))
    assert network(*inputs(SMALL)).abs().max() == 0
    tokens, shared = torch.randn(2, 6, 32), torch.zeros(2, 6, 32)
    cos, sin = torch.ones(6, 16), torch.zeros(6, 16)
    torch.testing.assert_close(network.blocks[0](tokens, shared, Surroundings(rope=(cos, sin))), tokens)


def test_the_input_is_brought_to_unit_variance_at_every_noise_time() -> None:
    torch.manual_seed(0)
    network = DiT(**asdict(SMALL))
    for t in (0.0, 0.3, 0.9, 1.0):
        x = (1 - t) * SMALL.data_std * torch.randn(100_000) + t * SMALL.noise_scale * torch.randn(100_000)
        scaled = x * network._input_scale(torch.tensor([t]))
        assert scaled.std().item() == pytest.approx(1, abs=0.02)


def test_patches_are_those_of_unfold() -> None:
    x = torch.randn(2, 3, 16, 24)
    patches = patchify(x, 8)
    unfolded = torch.nn.functional.unfold(x, 8, stride=8).transpose(1, 2).view(2, 6, 3, 64)
    torch.testing.assert_close(patches.view(2, 6, 64, 3), unfolded.transpose(2, 3))
    torch.testing.assert_close(unpatchify(patches, (2, 3), 8), x)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    given = inputs(SMALL)
    gradients = []
    for checkpointing in (False, True):
        network = grown(SMALL).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*given).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(g is not None for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_saved_network_comes_back_whole(tmp_path: Path) -> None:
    network, given = grown(VARIANTS["cross"]), inputs(VARIANTS["cross"])
    network.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    assert again.shape == VARIANTS["cross"]
    torch.testing.assert_close(again(*given), network(*given), atol=0, rtol=0)


def test_a_lora_adapter_is_added_trained_and_switched_off() -> None:
    network, given = grown(SMALL), inputs(SMALL)
    before = network(*given)
    network.add_adapter(LoraConfig(r=2, target_modules=["qkv", "proj", "fc1", "fc2"], init_lora_weights=False))
    assert (network(*given) - before).abs().max() > 1e-4
    network(*given).sum().backward()
    with_gradients = [n for n, p in network.named_parameters() if p.grad is not None]
    assert with_gradients
    assert all("lora" in name for name in with_gradients)
    network.disable_adapters()
    torch.testing.assert_close(network(*given), before)


def test_bf16_stays_close_to_fp32() -> None:
    network, given = grown(SMALL), inputs(SMALL)
    exact = network(*given)
    rounded = network.bfloat16()(*given).float()
    assert (rounded - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patch_size": 7}, "sample_size is 32"),
        ({"hidden_size": 36}, "hidden_size is 36"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"noise_scale": -1.0}, "noise_scale is -1.0"),
        ({"noise_scale": float("nan")}, "noise_scale is nan"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DiT(**asdict(SMALL) | change)


def test_a_picture_off_the_patch_is_refused() -> None:
    x, *rest = inputs(SMALL)
    with pytest.raises(ValueError, match="height is 30"):
        grown(SMALL)(x[:, :, :30], *rest)


def test_emoji_256_can_be_cut_into_segments_and_fits_its_size_limit() -> None:
    network = DiT(**asdict(PRESETS["emoji-256"]))
    assert len(network.blocks) >= 12
    assert sum(p.numel() for p in network.parameters()) * 2 <= 45e6
