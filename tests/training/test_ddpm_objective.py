"""The DDPM objective against the equations of Improved DDPM (arXiv 2102.09672), written out in fp64 and by sampling."""

import math

import pytest
import torch
from torch import Tensor

from mezzotint.training.ddpm_objective import DDPMObjective, discretised_log_likelihood, gaussian_kl

T = torch.tensor([0, 0, 1, 2, 40, 333, 998, 999])
OBJECTIVE = DDPMObjective()

BETA = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
ABAR = [math.prod(1 - beta for beta in BETA[: t + 1]) for t in range(1000)]


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise [8, 4, 4, 6] and what a network near the truth returns [8, 8, 4, 6]; v goes beyond -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(T), 4, 4, 6, generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    guess = noise + 0.5 * torch.randn(x.shape, generator=generator)
    v = 2.4 * torch.rand(x.shape, generator=generator) - 1.2
    return x, noise, torch.cat([guess, v], dim=1)


def phi(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2


def written_out(t: int, x0: float, noise: float, guess: float, v: float) -> tuple[float, float]:
    """The two terms of one value: squared error, and L_t in bits, by equations 9 to 15."""
    xt = math.sqrt(ABAR[t]) * x0 + math.sqrt(1 - ABAR[t]) * noise
    before = ABAR[t - 1] if t else 1.0
    guessed = (xt - math.sqrt(1 - ABAR[t]) * guess) / math.sqrt(ABAR[t])

    def posterior_mean(x: float) -> float:
        return (math.sqrt(before) * BETA[t] * x + math.sqrt(1 - BETA[t]) * (1 - before) * xt) / (1 - ABAR[t])

    at = max(t, 1)
    posterior = BETA[at] * (1 - ABAR[at - 1]) / (1 - ABAR[at])
    share = (v + 1) / 2
    variance = BETA[t] ** share * posterior ** (1 - share)
    mean = posterior_mean(guessed)
    if t == 0:
        low, high = ((x0 - mean + side) / math.sqrt(variance) for side in (-1 / 255, 1 / 255))
        above, below = (1.0 if x0 > 0.999 else phi(high)), (0.0 if x0 < -0.999 else phi(low))
        probability = above - below
        return (guess - noise) ** 2, -math.log2(probability)
    nats = math.log(variance / posterior) / 2 + (posterior + (posterior_mean(x0) - mean) ** 2) / (2 * variance) - 0.5
    return (guess - noise) ** 2, nats / math.log(2)


def reference(x: Tensor, noise: Tensor, out: Tensor) -> tuple[list[float], list[float]]:
    """Both terms of each sample."""
    simple, terms = [], []
    for i, t in enumerate(T.tolist()):
        values = [part.double().flatten().tolist() for part in (x[i], noise[i], out[i, :4], out[i, 4:])]
        pairs = [written_out(t, *each) for each in zip(*values, strict=True)]
        simple.append(sum(pair[0] for pair in pairs) / len(pairs))
        terms.append(sum(pair[1] for pair in pairs) / len(pairs))
    return simple, terms


def test_noise_is_added_by_the_linear_schedule() -> None:
    x, noise, _ = batch()
    noisy = OBJECTIVE.add_noise(x, T, noise)
    assert noisy.dtype == torch.float32
    for i, t in enumerate(T.tolist()):
        expected = math.sqrt(ABAR[t]) * x[i].double() + math.sqrt(1 - ABAR[t]) * noise[i].double()
        torch.testing.assert_close(noisy[i].double(), expected, atol=1e-6, rtol=1e-6)


def test_the_loss_is_that_of_the_equations() -> None:
    x, noise, out = batch()
    xt = OBJECTIVE.add_noise(x, T, noise)
    simple, terms = reference(x, noise, out)
    assert len(set(terms)) == len(T)
    found = OBJECTIVE.variational_term(out[:, :4], out[:, 4:], x, xt, T)
    assert found.tolist() == pytest.approx(terms, rel=2e-4)
    loss = OBJECTIVE.loss(out, x, xt, T, noise)
    # lambda T = 0.001 x 1000
    assert loss.tolist() == pytest.approx([a + b for a, b in zip(simple, terms, strict=True)], rel=2e-4)
    assert loss.dtype == torch.float32


def test_with_fewer_steps_the_variational_term_counts_less() -> None:
    objective, (x, noise, out) = DDPMObjective(num_timesteps=250), batch()
    t = T.clamp(max=249)
    xt = objective.add_noise(x, t, noise)
    simple = (out[:, :4] - noise).square().flatten(1).mean(1)
    term = objective.variational_term(out[:, :4], out[:, 4:], x, xt, t)
    torch.testing.assert_close(objective.loss(out, x, xt, t, noise), simple + 0.25 * term)


def test_the_variational_term_trains_only_the_variance() -> None:
    x, noise, out = batch()
    xt = OBJECTIVE.add_noise(x, T, noise)
    out.requires_grad_()
    OBJECTIVE.loss(out, x, xt, T, noise).sum().backward()
    assert out.grad is not None
    expected = 2 * (out[:, :4] - noise).detach() / noise[0].numel()
    torch.testing.assert_close(out.grad[:, :4], expected)
    # The gradient of v by finite differences of the equations.
    sample, width = 96, 1e-5
    given = out.detach()
    for i, t in enumerate(T.tolist()):
        values = [float(part[i].flatten()[5]) for part in (x, noise, given[:, :4], given[:, 4:])]
        above, below = (written_out(t, *values[:3], values[3] + side)[1] for side in (width, -width))
        found = float(out.grad[i, 4:].flatten()[5])
        assert found == pytest.approx((above - below) / (2 * width) / sample, rel=1e-3, abs=1e-7)


def test_a_network_without_a_variance_has_the_squared_error_alone() -> None:
    x, noise, out = batch()
    xt = OBJECTIVE.add_noise(x, T, noise)
    simple, _ = reference(x, noise, out)
    assert OBJECTIVE.loss(out[:, :4], x, xt, T, noise).tolist() == pytest.approx(simple, rel=1e-5)
    with pytest.raises(ValueError, match="returned 5 channels for 4; it must be as many, or twice"):
        OBJECTIVE.loss(out[:, :5], x, xt, T, noise)


def test_the_right_answer_costs_nothing_from_the_second_step_on() -> None:
    x, noise, _ = batch()
    xt = OBJECTIVE.add_noise(x, T, noise)
    right = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    loss = OBJECTIVE.loss(right, x, xt, T, noise)
    assert loss[2:].abs().max() < 1e-5
    assert loss[:2].min() > 0.1  # a bin has more than one value


def test_a_divergence_is_the_integral_that_it_stands_for() -> None:
    mean, variance, other_mean, other_variance = 0.3, 0.04, 0.45, 0.09
    grid = torch.linspace(-6, 6, 400_001, dtype=torch.float64)

    def log_density(m: float, v: float) -> Tensor:
        return -(grid - m) ** 2 / (2 * v) - math.log(2 * math.pi * v) / 2

    p, q = log_density(mean, variance), log_density(other_mean, other_variance)
    integral = torch.trapezoid(p.exp() * (p - q), grid)
    found = gaussian_kl(*(torch.tensor(value) for value in (
        mean, math.log(variance), other_mean, math.log(other_variance)
    )))
    assert found.item() == pytest.approx(integral.item(), rel=1e-5)


def test_a_divergence_of_a_step_is_what_samples_of_the_forward_process_say() -> None:
    """Of x_t-1 given x_0 and x_t, drawn through the process itself: x_t-1 from x_0, kept where x_t comes out near."""
    t, x0, noise, guess, v = 700, 0.8, 0.2, 0.9, 0.4
    generator = torch.Generator().manual_seed(0)
    xt = math.sqrt(ABAR[t]) * x0 + math.sqrt(1 - ABAR[t]) * noise
    count = 6_000_000
    before = math.sqrt(ABAR[t - 1]) * x0 + math.sqrt(1 - ABAR[t - 1]) * torch.randn(count, generator=generator)
    after = math.sqrt(1 - BETA[t]) * before + math.sqrt(BETA[t]) * torch.randn(count, generator=generator)
    kept = before[(after - xt).abs() < 0.02].double()
    # Two normal distributions: the one of the samples, and the network's step.
    guessed = (xt - math.sqrt(1 - ABAR[t]) * guess) / math.sqrt(ABAR[t])
    mean = kept.mean() + math.sqrt(ABAR[t - 1]) * BETA[t] / (1 - ABAR[t]) * (guessed - x0)
    posterior = kept.var()
    variance = BETA[t] ** ((v + 1) / 2) * posterior ** ((1 - v) / 2)
    nats = (variance / posterior).log() / 2 + (posterior + (kept.mean() - mean) ** 2) / (2 * variance) - 0.5
    parts = (torch.full((1, 1, 1, 1), value) for value in (guess, v, x0, xt))
    found = OBJECTIVE.variational_term(*parts, torch.tensor([t]))
    assert found.item() == pytest.approx(nats.item() / math.log(2), rel=0.02)


def test_the_bins_of_a_value_hold_all_probability() -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, deviation in ((0.1, 0.2), (0.97, 0.01), (-3.0, 1.0), (0.5, 0.002)):
        log = discretised_log_likelihood(values, torch.tensor(mean), torch.tensor(2 * math.log(deviation)).double())
        assert log.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_value_far_from_its_mean_keeps_its_gradient(side: int) -> None:
    """30 deviations out fp32 has no probability left, but its logarithm."""
    mean = torch.tensor([side * 0.3], requires_grad=True)
    log = discretised_log_likelihood(torch.zeros(1), mean, torch.tensor([2 * math.log(0.01)]))
    log.sum().backward()
    # The bin's near end is (0.3 - 1/255) / 0.01 deviations away: log phi(-a) is about -a^2 / 2 - log(a sqrt(2 pi)).
    a = (0.3 - 1 / 255) / 0.01
    assert log.item() == pytest.approx(-a * a / 2 - math.log(a * math.sqrt(2 * math.pi)), rel=1e-3)
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(-side * a / 0.01, rel=1e-2)


def test_a_bf16_answer_is_measured_in_fp32() -> None:
    x, noise, out = batch()
    rounded = out.bfloat16()
    xt = OBJECTIVE.add_noise(x, T, noise)
    simple, terms = reference(x, noise, rounded.float())
    loss = OBJECTIVE.loss(rounded, x, xt, T, noise)
    assert loss.tolist() == pytest.approx([a + b for a, b in zip(simple, terms, strict=True)], rel=2e-4)


def test_steps_are_drawn_evenly_within_their_share() -> None:
    drawn = OBJECTIVE.draw_t(200_000, torch.Generator().manual_seed(0), (0.25, 0.5))
    assert (drawn.min().item(), drawn.max().item()) == (250, 499)
    counts = torch.bincount(drawn - 250, minlength=250)
    assert counts.min() > 640  # 800 each, and their deviation is 28
    assert counts.max() < 960
    assert OBJECTIVE.draw_t(50_000, torch.Generator().manual_seed(0)).unique().numel() == 1000


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"num_timesteps": 1}, "num_timesteps is 1"), ({"beta_start": 0.0}, "beta_start is 0.0"),
     ({"beta_end": 1e-5}, "beta_end 1e-05; they must rise")],
)
def test_a_schedule_that_cannot_be_is_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DDPMObjective(**settings)  # type: ignore[arg-type]
