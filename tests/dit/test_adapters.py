"""Adapters merged into a network do what peft does, and leave no trace."""

import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from mezzotint.dit.adapters import Adapter, AdapterSlot, Lora, linears
from mezzotint.dit.model import DiT
from mezzotint.dit.packed_linears import packed_linears

TARGETS = ("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2")


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(0)
    network = DiT(sample_size=32, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=2, num_heads=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def make_adapter(network: nn.Module, name: str, seed: int, targets: tuple[str, ...] = TARGETS) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    there = linears(network)
    return Adapter(name=name, loras={
        path: Lora(
            down_rI=torch.randn(4, there[path].in_features, generator=generator) / 8,
            up_Or=torch.randn(there[path].out_features, 4, generator=generator) / 8, scale=0.5,
        )
        for path in targets
    })


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def predicted(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, text, pooled = (torch.randn(*s, generator=generator) for s in ((2, 3, 32, 32), (2, 4, 384), (2, 384)))
    with torch.no_grad():
        return network(x, torch.tensor([0.3, 0.9]), text, pooled)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def peft_predicted(network: DiT, adapters: list[tuple[Adapter, float]]) -> Tensor:
    """What peft's own layers compute, unmerged, with several adapters at their weights."""
    targets = list(dict.fromkeys(path for adapter, _ in adapters for path in adapter.loras))
    for adapter, _ in adapters:
        config = LoraConfig(r=4, lora_alpha=2, target_modules=targets)
        network = inject_adapter_in_model(config, network, adapter_name=adapter.name)
    for path in targets:
        layer = network.get_submodule(path)
        layer.set_adapter([adapter.name for adapter, _ in adapters])
        for adapter, weight in adapters:
            lora = adapter.loras[path]
            layer.lora_A[adapter.name].weight.data.copy_(lora.down_rI)
            layer.lora_B[adapter.name].weight.data.copy_(lora.up_Or)
            layer.set_scale(adapter.name, weight)
    return predicted(network)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_adapters_at_their_weights_are_what_peft_computes(network: DiT) -> None:
    chosen = [(make_adapter(network, "one", 1), 0.7), (make_adapter(network, "two", 2), -0.4)]
    slot, plain = AdapterSlot(network), predicted(network)
    with slot.drawing(chosen):
        ours = predicted(network)
    assert (ours - plain).abs().max() > 0.01
    torch.testing.assert_close(ours, peft_predicted(network, chosen), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_merged_before_leaves_no_trace(network: DiT, dtype: torch.dtype) -> None:
    network = network.to(dtype)
    pristine, slot = weights(network), AdapterSlot(network)
    one, two = make_adapter(network, "one", 1), make_adapter(network, "two", 2, TARGETS[1:])
    slot.fuse([(two, 1.0)])
    alone = weights(network)
    assert not equal(alone, pristine)
    for others in ([(one, 3.0)], [(one, 1.0), (two, 0.3)], []):
        slot.fuse(others)
        slot.fuse([(two, 1.0)])
        assert equal(weights(network), alone)
    slot.unfuse()
    assert equal(weights(network), pristine)


def test_bf16_weights_are_rounded_once(network: DiT) -> None:
    network = network.bfloat16()
    chosen = [(make_adapter(network, f"a{i}", i), 0.3) for i in range(4)]
    base = linears(network)[TARGETS[0]].weight.detach().double()
    wanted = base + sum(0.3 * 0.5 * a.loras[TARGETS[0]].up_Or.double() @ a.loras[TARGETS[0]].down_rI.double()
                        for a, _ in chosen)
    AdapterSlot(network).fuse(chosen)
    off = (linears(network)[TARGETS[0]].weight.double() - wanted).abs()
    assert (off <= 2**-8 * wanted.abs() + 1e-6).all()  # half a unit in the last of bf16's 8 bits, and fp32's sum


def test_the_network_is_as_it_was_when_a_drawing_fails(network: DiT) -> None:
    pristine, slot = weights(network), AdapterSlot(network)
    with pytest.raises(RuntimeError, match="cancelled"), slot.drawing([(make_adapter(network, "one", 1), 1.0)]):
        raise RuntimeError("cancelled")
    assert equal(weights(network), pristine)


def test_packed_linears_take_the_merged_weights(network: DiT) -> None:
    network, slot = network.bfloat16(), AdapterSlot(network)
    with slot.drawing([(make_adapter(network, "one", 1), 1.0)]):
        merged = predicted(network)
        with packed_linears(network):
            packed = predicted(network)
    assert (merged - predicted(network)).abs().max() > 0.01
    torch.testing.assert_close(packed, merged, atol=0.06, rtol=0.05)


def test_two_threads_with_different_adapters_get_what_each_gets_alone(network: DiT) -> None:
    slot, adapters = AdapterSlot(network), [make_adapter(network, f"a{i}", i) for i in range(2)]

    def drawn(i: int) -> Tensor:
        with slot.drawing([(adapters[i], 1.0)]):
            return predicted(network)

    alone = [drawn(i) for i in range(2)]
    together: list[list[Tensor]] = [[], []]
    threads = [threading.Thread(target=lambda i=i: together[i].extend(drawn(i) for _ in range(5))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(each) == 5 for each in together)
    assert all(torch.equal(picture, alone[i]) for i in range(2) for picture in together[i])
    assert not torch.equal(*alone)


def test_what_does_not_fit_is_refused_before_a_weight_changes(network: DiT) -> None:
    pristine, slot = weights(network), AdapterSlot(network)
    good = make_adapter(network, "good", 1)
    lora = good.loras[TARGETS[0]]
    strange = Adapter(name="strange", loras={"blocks.9.attn.qkv": lora})
    misshapen = Adapter(name="misshapen", loras={TARGETS[1]: lora})
    for chosen, said in (
        ([(good, 1.0), (strange, 1.0)], r"'strange'; it changes blocks\.9\.attn\.qkv, and the network has no Linear"),
        ([(good, 1.0), (misshapen, 1.0)], r"'misshapen'; for blocks\.1\.mlp\.fc1 it has \[96, 4\] by \[4, 32\]"),
        ([(good, 1.0), (good, 1.0)], "'good' is given 2 times"),
        ([(good, float("nan"))], "weight of adapter 'good' is nan"),
    ):
        with pytest.raises(ValueError, match=said):
            slot.fuse(chosen)
        assert equal(weights(network), pristine)


def test_weight_zero_changes_no_bit(network: DiT) -> None:
    pristine = weights(network)
    AdapterSlot(network).fuse([(make_adapter(network, "one", 1), 0.0)])
    assert equal(weights(network), pristine)
