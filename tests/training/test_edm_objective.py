"""EDM's loss against the paper's formulas in fp64, picture by picture and patch by patch."""

import pytest
import torch
from torch import Tensor

from mezzotint.dit.microdit import MicroDiT
from mezzotint.sampling.edm import denoise, edm_scheduler
from mezzotint.training.edm_objective import EDMConfig, draw_sigma, edm_loss, edm_weight

SMALL = {
    "sample_size": 8, "hidden_size": 24, "num_layers": 3, "head_dim": 8, "mlp_multiple": 8, "mixer_layers": 2,
    "mixer_size": 16, "num_experts": 3, "expert_capacity": 1.5, "text_size": 6,
}
KEEP = torch.tensor([[1, 5, 6], [0, 15, 9]])


def network() -> MicroDiT:
    torch.manual_seed(0)
    made = MicroDiT(**SMALL).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def by_hand(made: MicroDiT, clean: Tensor, noise: Tensor, sigma: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    """lambda(sigma) |D(x + n) - x|^2 with the network's own raw answer, as section 5 and table 1 have it."""
    data, losses = 0.9, []
    for i, level in enumerate(sigma):
        total = level**2 + data**2
        noisy = clean[i] + level * noise[i]
        answer = made((noisy / total.sqrt())[None], (level.log() / 4)[None], y[i : i + 1],
                      keep=None if keep is None else keep[i : i + 1])[0]
        error = data**2 / total * noisy + level * data / total.sqrt() * answer - clean[i]
        patches = [error[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for row in range(4)
                   for column in range(4)]
        chosen = range(16) if keep is None else keep[i].tolist()
        mean = sum(patches[place].square().mean() for place in chosen) / len(chosen)
        losses.append(total / (level * data) ** 2 * mean)
    return torch.stack(losses)


@pytest.mark.parametrize("keep", [None, KEEP])
def test_loss_and_gradients_are_the_papers(keep: Tensor | None) -> None:
    made = network()
    clean, noise = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    sigma, y = torch.tensor([0.3, 4.0], dtype=torch.float64), torch.randn(2, 1, 5, 6, dtype=torch.float64)
    denoised = denoise(made, edm_scheduler(), clean + sigma.view(-1, 1, 1, 1) * noise, sigma, y, keep=keep)
    losses = edm_loss(denoised, clean, sigma, patch_size=2, sigma_data=0.9, keep=keep)
    wanted = by_hand(made, clean, noise, sigma, y, keep)
    torch.testing.assert_close(losses, wanted)
    parameters = list(made.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(losses.mean(), parameters), torch.autograd.grad(wanted.mean(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_patches_that_were_dropped_count_for_nothing() -> None:
    clean, denoised = torch.randn(2, 2, 4, 8, 8)
    losses = edm_loss(denoised, clean, torch.ones(2), patch_size=2, sigma_data=0.9, keep=KEEP)
    changed = denoised.clone()
    changed[0, :, 0:2, 0:2] += 9  # patch 0 is kept in the second picture only
    again = edm_loss(changed, clean, torch.ones(2), patch_size=2, sigma_data=0.9, keep=KEEP)
    assert torch.equal(again, losses)
    changed[1, :, 0:2, 0:2] += 9
    again = edm_loss(changed, clean, torch.ones(2), patch_size=2, sigma_data=0.9, keep=KEEP)
    assert again[0] == losses[0]
    assert again[1] > losses[1] + 1


def test_an_answer_of_zero_costs_one_where_the_data_is_as_wide_as_said() -> None:
    """The weight makes the loss of an untrained network 1 at every level."""
    torch.manual_seed(0)
    clean, noise = 0.9 * torch.randn(3, 4, 64, 64), torch.randn(3, 4, 64, 64)
    sigma, y = torch.tensor([0.01, 1.0, 50.0]), torch.zeros(3, 1, 2, 6)
    denoised = denoise(MicroDiT(**SMALL), edm_scheduler(), clean + sigma.view(-1, 1, 1, 1) * noise, sigma, y)
    losses = edm_loss(denoised, clean, sigma, patch_size=2, sigma_data=0.9)
    torch.testing.assert_close(losses, torch.ones(3), atol=0.05, rtol=0)


def test_levels_are_log_normal() -> None:
    logs = draw_sigma(100_000, EDMConfig(log_mean=-0.6, log_std=1.2), torch.Generator().manual_seed(0)).log()
    assert float(logs.mean()) == pytest.approx(-0.6, abs=0.02)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.02)
    assert float(((logs + 0.6).abs() < 1.2).float().mean()) == pytest.approx(0.6827, abs=0.01)


def test_the_weight_is_one_over_the_square_of_what_scales_the_answer() -> None:
    sigma = torch.tensor([0.1, 0.9, 30.0], dtype=torch.float64)
    c_out = sigma * 0.9 / (sigma**2 + 0.81).sqrt()
    torch.testing.assert_close(edm_weight(sigma, 0.9), c_out**-2)


@pytest.mark.parametrize("name", ["sigma_data", "log_std"])
def test_deviations_are_over_0(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be more than 0"):
        EDMConfig(**{name: 0})
