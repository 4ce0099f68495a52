"""Windows and routing inside a network: what reaches what, and that keeping all of it is dense attention."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from mezzotint.dit.config import DiTConfig, TextConditioning
from mezzotint.dit.model import DiT
from mezzotint.kernels import routing

CONFIG = DiTConfig(
    sample_size=96, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=1, num_heads=2, text_size=24,
    max_text_tokens=5, attention_tile=4, attention_window=4,
)


def network_of(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    network = DiT(**asdict(config)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def inputs(height: int, width: int) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    text = torch.randn(2, 5, 24)
    mask = torch.ones(2, 5, dtype=torch.bool)
    return torch.randn(2, 3, height, width), torch.tensor([0.3, 0.8]), text, text.mean(1), mask


@pytest.mark.parametrize("conditioning", ["joint", "cross"])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (72, 104)])
@pytest.mark.parametrize("change", [{"attention": "window", "attention_window": 99},
                                    {"attention": "routed", "attention_keep": 1.0}])
def test_keeping_everything_is_dense_attention(
    change: dict[str, object], height: int, width: int, conditioning: TextConditioning
) -> None:
    dense = network_of(replace(CONFIG, num_layers=2, text_conditioning=conditioning))
    sparse = network_of(replace(CONFIG, num_layers=2, text_conditioning=conditioning, **change))  # type: ignore[arg-type]
    given = inputs(height, width)
    torch.testing.assert_close(sparse(*given), dense(*given), atol=2e-5, rtol=1e-4)


def reached(network: DiT, given: tuple[Tensor, ...], row: int, column: int) -> Tensor:
    """Which patches of the output change with one patch of the input, bool [rows, columns]."""
    x = given[0].clone()
    x[..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1.0
    moved = (network(x, *given[1:]) - network(*given)).abs().amax(dim=(0, 1))
    return moved.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).amax(dim=(1, 3)) > 1e-6


def test_in_one_layer_a_patch_reaches_its_window_and_no_further() -> None:
    network = network_of(replace(CONFIG, attention="window"))
    changed = reached(network, inputs(96, 96), row=5, column=9)
    wanted = torch.zeros(12, 12, dtype=torch.bool)
    wanted[4:8, 8:12] = True  # its own tile of 4 x 4 patches
    assert torch.equal(changed, wanted)


def test_routing_keeps_a_tile_and_some_others_and_is_chosen_by_content() -> None:
    network = network_of(replace(CONFIG, attention="routed", attention_keep=0.3))
    given = inputs(96, 96)
    changed = reached(network, given, row=5, column=9)
    assert changed[4:8, 8:12].all()
    assert not changed.all()
    others = [reached(network, (given[0].roll(s, 2), *given[1:]), row=5, column=9) for s in (16, 40)]
    assert any(not torch.equal(changed, other) for other in others)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_that_share_a_choice_make_it_once(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """The second of two layers follows the first one's choice, which is not what it would choose itself."""
    config = replace(CONFIG, num_layers=4, attention="routed", attention_keep=0.3)
    shared = network_of(replace(config, attention_share_layers=2)).train()
    if checkpointing:
        shared.enable_gradient_checkpointing()
    calls = []
    scores = routing.block_scores
    monkeypatch.setattr(routing, "block_scores", lambda *given: calls.append(1) or scores(*given))
    out = shared(*inputs(96, 96))
    out.sum().backward()
    assert len(calls) == 2
    assert not torch.allclose(out, network_of(config)(*inputs(96, 96)))


@pytest.mark.parametrize("pattern", ["window", "routed"])
def test_gradients_reach_every_parameter_with_checkpointing_as_without(pattern: str) -> None:
    config = replace(CONFIG, num_layers=2, attention=pattern)  # type: ignore[arg-type]
    gradients = []
    for checkpointing in (False, True):
        network = network_of(config).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*inputs(96, 72)).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("pattern", ["full", "window", "routed"])
def test_compiles_without_a_graph_break(pattern: str) -> None:
    network = network_of(replace(CONFIG, attention=pattern))  # type: ignore[arg-type]
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    given = inputs(64, 64)
    torch.testing.assert_close(compiled(*given), network(*given))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"attention": "local"}, "full, window, routed"), ({"attention_tile": 6}, "4 or 8"),
     ({"attention_keep": 0.0}, "over 0 and at most 1"), ({"attention_share_layers": 0}, "more than 0"),
     ({"attention_window": 0}, "more than 0")],
)
def test_a_pattern_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]
