"""Packed Linears against torch's own, and that nothing of the packing is left behind."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import nn

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.layers import GeluMlp
from mezzotint.dit.model import DiT
from mezzotint.dit.packed_linears import packed_linears

CONFIG = DiTConfig(sample_size=64, patch_size=16, patch_bottleneck=32, hidden_size=64, num_layers=3, num_heads=2)

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 in oneDNN, so nothing is packed"
)


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(0)
    made = DiT.from_config(asdict(CONFIG))
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.05)
    return made.bfloat16().eval()


@pytest.mark.parametrize("rows", [1, 7, 152])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_gives_the_same_bits(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(96, 200, bias=bias).bfloat16()
    x = torch.randn(2, rows, 96).bfloat16()
    with torch.no_grad():
        wanted = linear(x)
        with packed_linears(linear):
            assert torch.equal(linear(x), wanted)


def test_the_gelu_is_rounded_once() -> None:
    """Against fp64: at least as near as a GELU of a rounded Linear is."""
    torch.manual_seed(0)
    mlp = GeluMlp(CONFIG).bfloat16()
    x = torch.randn(4, 50, 64).bfloat16()
    with torch.no_grad():
        hidden = nn.functional.gelu(
            nn.functional.linear(x.double(), mlp.fc1.weight.double(), mlp.fc1.bias.double()), approximate="tanh"
        )
        exact = nn.functional.linear(hidden, mlp.fc2.weight.double(), mlp.fc2.bias.double())
        plain = (mlp(x).double() - exact).norm()
        with packed_linears(mlp):
            packed = (mlp(x).double() - exact).norm()
    assert 0 < packed < 1.05 * plain


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(2, 3, 64, 64, generator=generator), torch.tensor([0.3, 0.9]),
        torch.randn(2, 12, 384, generator=generator), torch.randn(2, 384, generator=generator),
    )


@torch.no_grad()
def test_a_network_predicts_the_same_within_bf16_and_is_itself_again_afterwards(network: DiT) -> None:
    before, names = network(*inputs()), list(network.state_dict())
    with packed_linears(network):
        inside = network(*inputs())
        with packed_linears(network):  # as two drawings at once
            assert torch.equal(network(*inputs()), inside)
        assert torch.equal(network(*inputs()), inside)
        assert list(network.state_dict()) == names
    scale = before.float().abs().max()
    assert 0 < (inside.float() - before.float()).abs().max() < 0.02 * scale
    assert torch.equal(network(*inputs()), before)
    assert not any("forward" in vars(module) for module in network.modules())


@torch.no_grad()
def test_changed_weights_count_at_the_next_drawing(network: DiT) -> None:
    with packed_linears(network):
        first = network(*inputs())
    network.final.linear.weight.data.mul_(2)  # past the version counter, as peft merges
    with packed_linears(network):
        second = network(*inputs())
    assert not torch.equal(first, second)


def test_an_error_inside_undoes_the_packing(network: DiT) -> None:
    def broken() -> None:
        with packed_linears(network):
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("change", [lambda n: n.float(), lambda n: n.to("meta")], ids=["fp32", "elsewhere"])
def test_other_networks_are_left_alone(network: DiT, change: Callable[[nn.Module], nn.Module]) -> None:
    other = change(network)
    with packed_linears(other):
        assert not any("forward" in vars(module) for module in other.modules())


def test_gradients_are_refused_while_it_is_packed(network: DiT) -> None:
    with packed_linears(network), pytest.raises(RuntimeError, match=r"draw under torch\.no_grad"):
        network(*inputs())
