"""The objective against the same formulas in fp64."""

import math

import pytest
import torch
from torch import Tensor

from mezzotint.dit.config import Prediction
from mezzotint.training.config import ObjectiveConfig
from mezzotint.training.objectives import add_noise, draw_t, velocity_loss

T = torch.tensor([0.004, 0.03, 0.05, 0.2, 0.7, 0.999])
"""Noise times on both sides of min_t."""
MIN_T = 0.05


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, pictures and noise [6, 3, 8, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(T), 3, 8, 16, generator=generator) for _ in range(3))  # type: ignore[return-value]


def plain_loss(prediction: Tensor, x: Tensor, noise: Tensor, kind: Prediction) -> Tensor:
    """Squared error of the velocity, as JiT writes it, picture by picture in fp64."""
    losses = []
    for p, clean, eps, t in zip(prediction.double(), x.double(), noise.double(), T.double(), strict=True):
        noisy = (1 - t) * clean + t * eps
        divisor = torch.clamp(t, min=MIN_T)
        wanted = eps - clean if kind == "v" else (noisy - clean) / divisor
        given = p if kind == "v" else (noisy - p) / divisor
        losses.append(((given - wanted) ** 2).mean())
    return torch.stack(losses)


def test_noise_is_added_on_a_straight_line() -> None:
    _, x, noise = batch()
    noisy = add_noise(x, T, noise).double()
    for i, t in enumerate(T.double()):
        torch.testing.assert_close(noisy[i], (1 - t) * x[i].double() + t * noise[i].double(), atol=1e-6, rtol=1e-6)


def test_the_ends_of_the_line_are_the_picture_and_the_noise() -> None:
    _, x, noise = batch()
    assert torch.equal(add_noise(x, torch.zeros(len(x)), noise), x)
    assert torch.equal(add_noise(x, torch.ones(len(x)), noise), noise)


@pytest.mark.parametrize("kind", ["x", "v"])
def test_the_loss_is_the_squared_error_of_the_velocity(kind: Prediction) -> None:
    prediction, x, noise = batch()
    loss = velocity_loss(prediction, x, noise, T, kind=kind, min_t=MIN_T)
    assert loss.shape == T.shape
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), plain_loss(prediction, x, noise, kind), rtol=2e-6, atol=0)


def test_above_min_t_both_predictions_of_one_picture_cost_the_same() -> None:
    picture, x, noise = batch()
    above = min(i for i, t in enumerate(T) if t > MIN_T)
    noisy = add_noise(x, T, noise)
    velocity = (noisy - picture) / T.view(-1, 1, 1, 1)
    by_x = velocity_loss(picture, x, noise, T, kind="x", min_t=MIN_T)
    by_v = velocity_loss(velocity, x, noise, T, kind="v", min_t=MIN_T)
    torch.testing.assert_close(by_x[above:], by_v[above:], rtol=1e-4, atol=0)
    assert torch.all(by_x[:2] < by_v[:2] / 2)  # below it the weight stops to grow


def test_a_perfect_answer_costs_nothing() -> None:
    _, x, noise = batch()
    assert velocity_loss(x, x, noise, T, kind="x", min_t=MIN_T).abs().max() == 0
    assert velocity_loss(noise - x, x, noise, T, kind="v", min_t=MIN_T).abs().max() == 0


@pytest.mark.parametrize("kind", ["x", "v"])
def test_gradients_are_those_of_the_plain_formula(kind: Prediction) -> None:
    prediction, x, noise = batch()
    upstream = torch.linspace(0.5, 3, len(T))
    fused, plain = prediction.clone().requires_grad_(), prediction.double().requires_grad_()
    (velocity_loss(fused, x, noise, T, kind=kind, min_t=MIN_T) * upstream).sum().backward()
    (plain_loss(plain, x, noise, kind) * upstream.double()).sum().backward()
    assert fused.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(fused.grad.double(), plain.grad, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["x", "v"])
def test_a_bf16_prediction_is_measured_in_fp32(kind: Prediction) -> None:
    prediction, x, noise = batch()
    rounded = prediction.bfloat16()
    fused, plain = rounded.clone().requires_grad_(), rounded.double().requires_grad_()
    loss = velocity_loss(fused, x, noise, T, kind=kind, min_t=MIN_T)
    expected = plain_loss(plain, x, noise, kind)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    loss.mean().backward()
    expected.mean().backward()
    assert fused.grad is not None
    assert plain.grad is not None
    assert fused.grad.dtype == torch.bfloat16
    # The gradient and its factor are each rounded to 8 bits.
    torch.testing.assert_close(fused.grad.double(), plain.grad, rtol=3 * 2**-8, atol=1e-9)


def test_a_picture_alone_costs_what_it_costs_in_a_batch() -> None:
    prediction, x, noise = batch()
    whole = velocity_loss(prediction, x, noise, T, kind="x", min_t=MIN_T)
    alone = [velocity_loss(prediction[i : i + 1], x[i : i + 1], noise[i : i + 1], T[i : i + 1], kind="x", min_t=MIN_T)
             for i in range(len(T))]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize(("mean", "std"), [(0.4, 1.0), (-0.8, 0.6), (0.0, 1.5)])
def test_noise_times_are_logit_normal(mean: float, std: float) -> None:
    count = 200_000
    t = draw_t(count, ObjectiveConfig(t_mean=mean, t_std=std), torch.Generator().manual_seed(1)).double()
    assert 0 < t.min() < t.max() < 1
    # Quantiles of sigmoid(N) are sigmoid(mean + std z); z of the normal distribution from its table.
    for share, z in ((0.5, 0.0), (0.1, -1.2815516), (0.9, 1.2815516), (0.025, -1.9599640), (0.975, 1.9599640)):
        expected = 1 / (1 + math.exp(-(mean + std * z)))
        assert torch.quantile(t, share).item() == pytest.approx(expected, abs=0.006)
    below = (t < 1 / (1 + math.exp(-(mean - 2 * std)))).double().mean()
    assert below.item() == pytest.approx(0.0227501, abs=0.0015)


def test_noise_times_follow_their_generator_alone() -> None:
    config = ObjectiveConfig()
    first = draw_t(8, config, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    assert torch.equal(first, draw_t(8, config, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, draw_t(8, config, torch.Generator().manual_seed(6)))
