"""The step caches that a request can name. Pure arithmetic, no torch; `cache` holds what they do."""

import re
from dataclasses import dataclass
from typing import Literal

CacheKind = Literal["off", "first-block", "taylor"]
OFF: CacheKind = "off"
FIRST_BLOCK: CacheKind = "first-block"
TAYLOR: CacheKind = "taylor"

THRESHOLD, INTERVAL, LARGEST_INTERVAL = 0.1, 3, 10
"""What first-block and taylor take where no number is written. Both are our choice: see docs/density.md."""

CACHES_IN_WORDS = (
    f"{OFF}, {FIRST_BLOCK} or {TAYLOR}, the last two with a number if you like: {FIRST_BLOCK}:{THRESHOLD:g}, a change "
    f"from 0 to 1, and {TAYLOR}:{INTERVAL}, a whole number of steps from 1 to {LARGEST_INTERVAL}"
)

_WRITTEN = re.compile(r"(first-block)(?::([0-9]*\.?[0-9]+))?|(taylor)(?::([0-9]+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSetting:
    """threshold: for first-block, the relative change under which modules are not run again.
    interval: for taylor, every how many steps they are."""

    kind: CacheKind = OFF
    threshold: float = THRESHOLD
    interval: int = INTERVAL

    def reused(self, num_steps: int) -> tuple[bool | None, ...]:
        """For each step whether the modules' residual comes from the cache; None where that is decided while drawing.

        Taylor runs the modules in the first two steps, for a slope, and then at every interval-th step.
        """
        if self.kind == TAYLOR:
            return tuple(step > 1 and (step - 1) % self.interval > 0 for step in range(num_steps))
        return tuple(None if self.kind == FIRST_BLOCK and step else False for step in range(num_steps))


def cache_setting(cache: str) -> CacheSetting:
    """A cache as it is written: "off", "first-block", "first-block:0.05", "taylor", "taylor:4".

    Raises ValueError naming the value and what there is.
    """
    try:
        return CacheSetting() if cache == OFF else _read(cache)
    except (TypeError, ValueError):
        raise ValueError(f"cache is {cache!r}; it must be {CACHES_IN_WORDS}.") from None


def _read(written: str) -> CacheSetting:
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise ValueError(f"cache is {written!r}, which is no name of one.")
    _, threshold, _, interval = match.groups()
    if match[1]:
        setting = CacheSetting(kind=FIRST_BLOCK, threshold=THRESHOLD if threshold is None else float(threshold))
    else:
        setting = CacheSetting(kind=TAYLOR, interval=INTERVAL if interval is None else int(interval))
    if setting.threshold > 1 or not 1 <= setting.interval <= LARGEST_INTERVAL:
        raise ValueError(f"cache is {written!r}, whose number is out of range.")
    return setting
