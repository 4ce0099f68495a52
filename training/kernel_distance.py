"""Kernel distance (KID, arXiv 1801.01401): how far drawn pictures as a whole are from real ones, by their features.

The unbiased squared maximum mean discrepancy under k(x, y) = (x . y / F + 1)^3. Its expectation does not depend on how
many pictures there are, and is 0 for two sets from one distribution; so it may come out a little below 0. Like every
score of features it compares only with scores of the same ones.

Shape suffixes: M drawn pictures, N real ones, F feature size, R resamples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DEGREE = 3
NUM_RESAMPLES = 1000
COVERAGE = 0.95
SEED = 0
"""Of the bootstrap; fixed, so that a score is the same again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelDistance:
    """The distance, and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def kernel_distance(drawn_MF: Tensor, real_NF: Tensor, num_resamples: int = NUM_RESAMPLES) -> KernelDistance:
    """The distance of two sets of features, in fp64; both are resampled for the interval.

    Raises ValueError where a set has fewer than two pictures, or the features are not of one size.
    """
    for name, features in (("drawn", drawn_MF), ("real", real_NF)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"{name} has shape {tuple(features.shape)}; it must be [pictures, features] of two or "
                             "more pictures.")
    if drawn_MF.shape[1] != real_NF.shape[1]:
        raise ValueError(f"drawn has features of size {drawn_MF.shape[1]} and real of {real_NF.shape[1]}; they must "
                         "be the same features.")
    drawn, real = drawn_MF.double(), real_NF.double()
    kernels = _centred(_kernel(drawn, drawn), _kernel(real, real), _kernel(drawn, real))
    generator = torch.Generator().manual_seed(SEED)
    counts_RM, counts_RN = (_counts(num_resamples, len(one), generator) for one in (drawn, real))
    resampled_R = _distances(counts_RM, counts_RN, *kernels)
    (value,) = _distances(torch.ones(1, len(drawn)), torch.ones(1, len(real)), *kernels)
    ends = torch.tensor([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(resampled_R, ends).tolist()  # a resample of one picture alone has no distance
    return KernelDistance(value=float(value), low=low, high=high)


def _kernel(x_AF: Tensor, y_BF: Tensor) -> Tensor:
    return (x_AF @ y_BF.T / x_AF.shape[1] + 1) ** DEGREE


def _centred(within_MM: Tensor, within_NN: Tensor, between_MN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels less the mean of each row and column over both sets, with a zero diagonal within a set.

    The distance is the same, since each mean comes in it as often with plus as with minus. In a resample that leaves
    copies out this holds no more, and the means, large far from 0, would widen the interval.
    """
    mean_M = (within_MM.mean(1) + between_MN.mean(1)) / 2
    mean_N = (between_MN.mean(0) + within_NN.mean(1)) / 2
    middle = (mean_M.mean() + mean_N.mean()) / 2
    within_MM = (within_MM - mean_M[:, None] - mean_M + middle).fill_diagonal_(0)
    within_NN = (within_NN - mean_N[:, None] - mean_N + middle).fill_diagonal_(0)
    return within_MM, within_NN, between_MN - mean_M[:, None] - mean_N + middle


def _counts(num_resamples: int, count: int, generator: torch.Generator) -> Tensor:
    """How often each picture comes in each resample [R, count]."""
    drawn = torch.randint(count, (num_resamples, count), generator=generator)
    return torch.zeros(num_resamples, count).scatter_add_(1, drawn, torch.ones(num_resamples, count))


def _distances(
    counts_RM: Tensor, counts_RN: Tensor, within_MM: Tensor, within_NN: Tensor, between_MN: Tensor
) -> Tensor:
    """One distance a resample [R]. Pairs of a picture with itself, or with a copy of itself, are left out, so that
    resampling adds no bias; `within` has a zero diagonal."""
    drawn, real = counts_RM.double(), counts_RN.double()
    between_R = ((drawn @ between_MN) * real).sum(1) / (drawn.sum(1) * real.sum(1))
    return _mean_of_pairs(drawn, within_MM) + _mean_of_pairs(real, within_NN) - 2 * between_R


def _mean_of_pairs(counts_RA: Tensor, within_AA: Tensor) -> Tensor:
    pairs_R = counts_RA.sum(1).square() - counts_RA.square().sum(1)
    return ((counts_RA @ within_AA) * counts_RA).sum(1) / pairs_R
