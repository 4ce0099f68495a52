"""The token densities that a request can name. Pure arithmetic, no torch."""

import re

from mezzotint.dit.density import DensitySchedule

FULL = "full"
PRUNING_RATES: dict[str, tuple[float, float]] = {FULL: (0.0, 0.0), "balanced": (0.5, 0.7), "fast": (0.61, 0.86)}
"""Pruning rates of data and of noise by name. Full prunes nothing. The pair of fast is published (arXiv 2412.06028);
that of balanced is our choice, between the published .44 to .61 and .61 to .86. Both names are ours."""

DENSITIES_IN_WORDS = (
    f"{', '.join(PRUNING_RATES)}, or two pruning rates from 0 to under 1, the lower one first, such as 0.61-0.86"
)

SAME, SKIP = "same", "skip"
"""Densities of guidance alone: that of the conditional branch, and none at all, its modules left out."""

GUIDANCE_DENSITIES_IN_WORDS = f"{SAME}, {SKIP}, {DENSITIES_IN_WORDS}"

_RATE = r"([0-9]*\.?[0-9]+)"
_PAIR = re.compile(f"{_RATE}-{_RATE}")


def density_schedule(density: str) -> DensitySchedule:
    """The schedule of a density by its name, or of a pair of rates as it is written, "0.61-0.86".

    Raises ValueError naming the value and what there is.
    """
    try:
        r_min, r_max = PRUNING_RATES.get(density) or _rates(density)
        return DensitySchedule(r_min=r_min, r_max=r_max)
    except (TypeError, ValueError):
        raise ValueError(f"density is {density!r}; it must be {DENSITIES_IN_WORDS}.") from None


def check_guidance_density(density: str) -> None:
    """Raise ValueError naming the value and what there is, unless it is a density for the guidance's branch."""
    try:
        if density not in (SAME, SKIP):
            density_schedule(density)
    except (TypeError, ValueError):
        raise ValueError(f"guidance_density is {density!r}; it must be {GUIDANCE_DENSITIES_IN_WORDS}.") from None


def _rates(written: str) -> tuple[float, float]:
    pair = _PAIR.fullmatch(written)
    if pair is None:
        raise ValueError(f"density is {written!r}, which is no pair of rates.")
    return float(pair[1]), float(pair[2])
