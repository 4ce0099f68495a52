"""EDM's sampler against the formulas of the paper, written out in fp64."""

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from mezzotint.dit.microdit import MicroDiT
from mezzotint.sampling.edm import denoise, draw_latents, edm_scheduler, heun

D = 0.9


class Answer(nn.Module):
    """A network in fp64 with an answer that depends on all that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, guidance_scale: float | None = None) -> Tensor:
        self.calls.append(float(t[0]))

        def answer(text: Tensor) -> Tensor:
            return torch.tanh(0.7 * x + t.view(-1, 1, 1, 1)) + text.mean((1, 2, 3)).view(-1, 1, 1, 1)

        if guidance_scale is None:
            return answer(y)
        return answer(0 * y) + guidance_scale * (answer(y) - answer(0 * y))


def by_hand(noise: Tensor, y: Tensor, steps: int, guidance: float | None) -> tuple[Tensor, list[float]]:
    """Algorithm 1 without churn, with the preconditioning of table 1; and sigma at each pass."""
    sigmas = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)] + [0.0]
    passes: list[float] = []

    def clean(x: Tensor, sigma: float) -> Tensor:
        passes.append(sigma)
        total = sigma**2 + D**2
        given = Answer()(x / total**0.5, torch.full((len(x),), log(sigma) / 4, dtype=torch.float64), y, guidance)
        return D**2 / total * x + sigma * D / total**0.5 * given

    x = noise * 80
    for i in range(steps):
        d = (x - clean(x, sigmas[i])) / sigmas[i]
        ahead = x + (sigmas[i + 1] - sigmas[i]) * d
        if i < steps - 1:
            d = (d + (ahead - clean(ahead, sigmas[i + 1])) / sigmas[i + 1]) / 2
            ahead = x + (sigmas[i + 1] - sigmas[i]) * d
        x = ahead
    return x, passes


@pytest.mark.parametrize("guidance", [None, 5.0])
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_drawing_is_heuns_method_on_the_papers_levels(steps: int, guidance: float | None) -> None:
    torch.manual_seed(0)
    noise, y = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 1, 3, 5, dtype=torch.float64)
    network = Answer()
    out = draw_latents(network, y, noise, num_inference_steps=steps, guidance_scale=guidance)
    wanted, passes = by_hand(noise, y, steps, guidance)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)  # the levels of diffusers are rounded to fp32
    assert network.calls == pytest.approx([log(sigma) / 4 for sigma in passes], abs=1e-6)
    assert len(passes) == 2 * steps - 1


def test_heun_is_of_second_order() -> None:
    """On clean latents that are a Gaussian's mean, where the path is known: halving the steps' length quarters the
    error."""

    def clean(x: Tensor, sigma: float) -> Tensor:
        return D**2 / (D**2 + sigma**2) * x

    def error(steps: int) -> float:
        sigmas = [exp(log(80) + i / steps * (log(0.01) - log(80))) for i in range(steps + 1)]
        start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        exact = ((D**2 + sigmas[-1] ** 2) / (D**2 + sigmas[0] ** 2)) ** 0.5
        return abs(float(heun(clean, start, sigmas)) - exact)

    assert error(100) / error(200) == pytest.approx(4, rel=0.15)


def test_each_finished_step_is_told() -> None:
    told: list[int] = []
    noise = torch.randn(1, 4, 4, 4)
    draw_latents(Answer(), torch.zeros(1, 1, 1, 1), noise, num_inference_steps=3, callback=lambda i, x: told.append(i))
    assert told == [0, 1, 2]


@torch.no_grad()
def test_a_network_draws_latents_of_its_own() -> None:
    torch.manual_seed(0)
    network = MicroDiT(
        sample_size=8, hidden_size=24, num_layers=2, head_dim=8, mlp_multiple=8, mixer_layers=1, mixer_size=16,
        text_size=6,
    ).eval()
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    text = torch.randn(2, 1, 3, 6)
    out = draw_latents(network, text, torch.randn(2, 4, 8, 8), num_inference_steps=4)
    assert out.shape == (2, 4, 8, 8)
    assert out.isfinite().all()


def test_levels_differ_within_a_batch() -> None:
    x, sigma = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.tensor([0.5, 20.0], dtype=torch.float64)
    y = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    both = denoise(Answer(), edm_scheduler(), x, sigma, y)
    for i in range(2):
        alone = denoise(Answer(), edm_scheduler(), x[i : i + 1], sigma[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone)
