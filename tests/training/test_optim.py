"""The optimizer against torch's own, stepped by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mezzotint.dit.model import DiT
from mezzotint.training.config import OptimConfig
from mezzotint.training.optim import MasterOptimizer, is_muon_parameter, learning_rate_factor

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Names as in a DiT: a Linear inside a block, and others outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.final = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.final(x)


def loss_of(network: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    dtype = next(network.parameters()).dtype
    x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)
    return (network(x.to(dtype)).float() - y).square().mean() * 20  # large enough to be clipped


CONFIG = OptimConfig(muon_lr=0.02, adamw_lr=0.01, weight_decay=0.1, grad_clip=1.0, ema_decay=0.9)


def test_in_fp32_it_is_muon_and_adamw_of_torch_step_by_step() -> None:
    ours, plain = Network(), Network()
    optimizer = MasterOptimizer(ours, CONFIG)
    named = dict(plain.named_parameters())
    muon = torch.optim.Muon([named["blocks.0.weight"], named["blocks.1.weight"]], lr=CONFIG.muon_lr,
                            weight_decay=CONFIG.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([named[n] for n in ("blocks.0.bias", "blocks.1.bias", "final.weight", "final.bias")],
                              lr=CONFIG.adamw_lr, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    clipped = 0
    for step, factor in enumerate([0.25, 0.5, 1.0, 1.0, 0.3, 0.0]):
        loss_of(ours, step).backward()
        norm = optimizer.step(factor, step)
        loss_of(plain, step).backward()
        expected_norm = torch.sqrt(sum(((p.grad**2).sum() for p in plain.parameters() if p.grad is not None),
                                       torch.zeros(())))
        assert norm == pytest.approx(expected_norm.item(), rel=1e-5)
        clipped += norm > CONFIG.grad_clip
        for p in plain.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, CONFIG.grad_clip / expected_norm.item())
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = CONFIG.muon_lr * factor, CONFIG.adamw_lr * factor
        muon.step()
        adamw.step()
        plain.zero_grad()
        for name, p in ours.named_parameters():
            torch.testing.assert_close(p, named[name], rtol=1e-5, atol=1e-6)
            assert p.grad is None
    assert clipped > 0


def test_a_step_at_rate_0_moves_nothing() -> None:
    network = Network()
    optimizer = MasterOptimizer(network, CONFIG)
    before = copy.deepcopy(network.state_dict())
    loss_of(network, 0).backward()
    optimizer.step(0.0, 0)
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())


def test_a_bf16_network_holds_the_rounded_masters_and_small_steps_add_up() -> None:
    network = Network()
    config = OptimConfig(muon_lr=1e-5, adamw_lr=1e-5, weight_decay=0.0)
    optimizer = MasterOptimizer(network, config)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    network.bfloat16()
    optimizer.live = dict(network.named_parameters())
    optimizer.write_back()
    for step in range(30):
        loss_of(network, 0).backward()
        optimizer.step(1.0, step)
        for name, p in network.named_parameters():
            assert p.dtype == torch.bfloat16
            assert torch.equal(p, optimizer.masters[name].bfloat16())
    moved = optimizer.masters["final.bias"] - start["final.bias"]
    # Each step is far below half a unit in bf16's last place, and 30 of them count in fp32.
    assert moved.abs().max() > 2e-4
    assert all(p.dtype == torch.float32 for p in optimizer.masters.values())


def test_muon_takes_the_matrices_of_the_blocks_alone() -> None:
    network = DiT(sample_size=32, patch_size=8, patch_bottleneck=16, hidden_size=32, num_layers=2, num_heads=2)
    chosen = {name for name, p in network.named_parameters() if is_muon_parameter(name, p)}
    linears = {f"{name}.weight" for name, m in network.named_modules()
               if isinstance(m, nn.Linear) and name.split(".")[0] == "blocks"}
    assert chosen == linears
    assert len(chosen) == 2 * 4  # qkv, proj, fc1 and fc2 of each block
    optimizer = MasterOptimizer(network, OptimConfig())
    count = len(optimizer.muon.param_groups[0]["params"]) + len(optimizer.adamw.param_groups[0]["params"])
    assert len(optimizer.muon.param_groups[0]["params"]) == len(chosen)
    assert count == len(list(network.parameters()))


@pytest.mark.parametrize(("step", "expected"), [
    (0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (59, 1.0), (60, 1.0), (61, 39 / 40), (80, 0.5), (99, 1 / 40), (100, 0.0),
    (150, 0.0),
])
def test_the_rate_warms_up_stays_and_falls_to_0(step: int, expected: float) -> None:
    config = OptimConfig(warmup_steps=10, decay_fraction=0.4)
    assert learning_rate_factor(step, 100, config) == pytest.approx(expected)


@pytest.mark.parametrize(("changes", "factors"), [
    ({"warmup_steps": 0, "decay_fraction": 0}, [1, 1, 1, 1]),
    ({"warmup_steps": 0, "decay_fraction": 1}, [1, 0.75, 0.5, 0.25]),
    ({"warmup_steps": 8, "decay_fraction": 0}, [1 / 8, 2 / 8, 3 / 8, 4 / 8]),
    ({"warmup_steps": 2, "decay_fraction": 1}, [0.5, 0.75, 0.5, 0.25]),
])
def test_the_rate_at_the_corners_of_its_settings(changes: dict[str, Any], factors: list[float]) -> None:
    config = OptimConfig(**changes)
    assert [learning_rate_factor(step, 4, config) for step in range(4)] == pytest.approx(factors)


def test_the_average_is_that_of_a_plain_loop() -> None:
    network = Network()
    optimizer = MasterOptimizer(network, CONFIG)
    average = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    decays = []
    for step in range(120):
        loss_of(network, step).backward()
        optimizer.step(1.0, step)
        decays.append(min(0.9, (1 + step) / (10 + step)))
        for name, p in network.named_parameters():
            average[name] = decays[-1] * average[name] + (1 - decays[-1]) * p.detach().double()
    assert decays[0] == 0.1
    assert decays[-1] == 0.9
    for name, value in average.items():
        torch.testing.assert_close(optimizer.ema[name].double(), value, rtol=1e-4, atol=1e-5)


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    straight = Network()
    optimizer = MasterOptimizer(straight, CONFIG)
    for step in range(3):
        loss_of(straight, step).backward()
        optimizer.step(1.0, step)
    state = copy.deepcopy(optimizer.state_dict())
    masters = {n: p.detach().clone() for n, p in optimizer.masters.items()}
    ema = {n: p.clone() for n, p in optimizer.ema.items()}
    resumed = Network()
    second = MasterOptimizer(resumed, CONFIG)
    second.load_state_dict(state, masters, ema)
    for step in range(3, 6):
        for network, stepped in ((straight, optimizer), (resumed, second)):
            loss_of(network, step).backward()
            stepped.step(0.7, step)
    assert all(torch.equal(p, resumed.state_dict()[name]) for name, p in straight.state_dict().items())
    assert all(torch.equal(p, second.ema[name]) for name, p in optimizer.ema.items())
