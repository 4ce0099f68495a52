"""Timing of things that are compared: interleaved, so that a noisy neighbour hits all of them, and by medians."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = 7
SECONDS_EACH = 1.0
"""A comparison stops after ROUNDS rounds, or earlier when it has taken this long for each of its sides (never
before three rounds)."""


def interleaved_medians(
    sides: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of one call of each side, called in turn after one call each to warm up."""
    for call in sides.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > SECONDS_EACH * len(sides):
            break
        for name, call in sides.items():
            seconds[name].append(_timed(call, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _timed(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
