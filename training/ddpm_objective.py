"""DDPM for networks that predict noise and the variance of a step: what Improved DDPM (arXiv 2102.09672) trains.

T = 1,000 steps, betas linear from 1e-4 to 0.02; x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. The network returns eps
and v, and the variance of its step lies between beta_t and the posterior's, on a log scale (equation 15 with a share of
(v + 1) / 2, so that v = -1 is the posterior's and v = 1 is beta_t: what DiT's checkpoints mean by v):

    log sigma_t^2 = (v + 1) / 2 log beta_t + (1 - v) / 2 log betatilde_t

The loss of one sample is mean((eps - eps_theta)^2) + lambda T L_t, lambda = 0.001, so that at T = 1,000 both count
alike: L_vlb is the sum of T terms L_t, one of which is drawn (equation 16: L_hybrid = L_simple + lambda L_vlb). L_t is
in bits per value: KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)) for t > 0, and at t = 0 the negative log-likelihood of x_0
in bins of 2/255 whose outermost reach to infinity. It trains the variance alone: the mean in it has no gradient.

Steps t count from 0 to T - 1, as DiT's networks take them: at t = 0 the picture holds the first beta of noise. All
arithmetic is fp32, of tables made in fp64.

Shape suffixes: B batch, c channels, H height, W width.
"""

import math

import torch
from torch import Tensor

VLB_WEIGHT = 0.001
HALF_BIN, LAST_BIN = 1 / 255, 0.999
"""Of values in 256 steps from -1 to 1: half their distance, and where the outermost ones begin."""


class DDPMObjective:
    """The noise schedule and the loss of a batch, on one device."""

    def __init__(
        self, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError unless there are two steps or more and the betas rise between 0 and 1."""
        if num_timesteps < 2:
            raise ValueError(f"num_timesteps is {num_timesteps}; it must be at least 2.")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start is {beta_start} and beta_end {beta_end}; they must rise between 0 and 1.")
        self.num_timesteps = num_timesteps
        beta = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        kept = (1 - beta).cumprod(0)
        kept_before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        posterior = beta * (1 - kept_before) / (1 - kept)
        posterior[0] = posterior[1]  # there is none before the first step, and its logarithm is needed
        self._signal = kept.sqrt().float().to(device)
        self._noise = (1 - kept).sqrt().float().to(device)
        # Mean of q(x_t-1 | x_t, x_0) (equation 11).
        self._mean_of_x0 = (beta * kept_before.sqrt() / (1 - kept)).float().to(device)
        self._mean_of_xt = ((1 - beta).sqrt() * (1 - kept_before) / (1 - kept)).float().to(device)
        self._log_beta = beta.log().float().to(device)
        self._log_posterior = posterior.log().float().to(device)

    def draw_t(
        self, batch: int, generator: torch.Generator, quantiles: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        """Steps [B], int64 on the CPU, all alike within a share of them; 0 is the least noise.

        quantiles: from and to, as shares of all steps.
        """
        low, high = (q * self.num_timesteps for q in quantiles)
        drawn = low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64)
        return drawn.floor().long().clamp(0, self.num_timesteps - 1)

    def add_noise(self, x0_BcHW: Tensor, t_B: Tensor, noise_BcHW: Tensor) -> Tensor:
        """x_t in fp32."""
        return _at(self._signal, t_B) * x0_BcHW.float() + _at(self._noise, t_B) * noise_BcHW.float()

    def loss(self, out: Tensor, x0_BcHW: Tensor, xt_BcHW: Tensor, t_B: Tensor, noise_BcHW: Tensor) -> Tensor:
        """Loss of each sample [B], fp32.

        out: what the network returned for x_t: [B, c, H, W] is the noise alone, and then there is no variational term;
        [B, 2c, H, W] the noise, then v. Raises ValueError for another number of channels.
        """
        channels = x0_BcHW.shape[1]
        if out.shape[1] not in (channels, 2 * channels):
            raise ValueError(
                f"the network returned {out.shape[1]} channels for {channels}; it must be as many, or twice."
            )
        predicted = out[:, :channels].float()
        simple = (predicted - noise_BcHW.float()).square().flatten(1).mean(1)
        if out.shape[1] == channels:
            return simple
        term = self.variational_term(predicted.detach(), out[:, channels:].float(), x0_BcHW, xt_BcHW, t_B)
        return simple + VLB_WEIGHT * self.num_timesteps * term

    def variational_term(
        self, noise_BcHW: Tensor, v_BcHW: Tensor, x0_BcHW: Tensor, xt_BcHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """L_t of each sample [B] in bits per value, for a predicted noise and v."""
        x0, xt = x0_BcHW.float(), xt_BcHW.float()
        guessed = (xt - _at(self._noise, t_B) * noise_BcHW) / _at(self._signal, t_B)
        true_mean, mean = (_at(self._mean_of_x0, t_B) * x + _at(self._mean_of_xt, t_B) * xt for x in (x0, guessed))
        log_posterior = _at(self._log_posterior, t_B)
        log_variance = log_posterior + (v_BcHW + 1) / 2 * (_at(self._log_beta, t_B) - log_posterior)
        nats = gaussian_kl(true_mean, log_posterior, mean, log_variance)
        first = (t_B == 0).nonzero().flatten()
        last = -discretised_log_likelihood(x0[first], mean[first], log_variance[first])
        return nats.index_copy(0, first, last).flatten(1).mean(1) / math.log(2)


def _at(table_T: Tensor, t_B: Tensor) -> Tensor:
    return table_T[t_B].view(-1, 1, 1, 1)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence of two normal distributions for each value, in nats."""
    ratio = log_variance - other_log_variance
    return ((mean - other_mean).square() * (-other_log_variance).exp() + ratio.expm1() - ratio) / 2


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of the normal probability of the bin around each value of x, in nats.

    The bins are those of 256 values from -1 to 1; below -0.999 and above 0.999 they reach to infinity.
    """
    deviation = (log_variance / 2).exp()
    low, high = ((x - mean + side) / deviation for side in (-HALF_BIN, HALF_BIN))
    # Far out, one minus a probability is a difference of ones; mirrored, both ends are small.
    mirrored = low + high > 0
    near, far = torch.where(mirrored, -low, high), torch.where(mirrored, -high, low)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    inside = log_near + (-(log_far - log_near).expm1()).log()
    outside = torch.special.log_ndtr(torch.where(x < -LAST_BIN, high, -low))
    return torch.where(x.abs() > LAST_BIN, outside, inside)
