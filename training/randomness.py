"""Random numbers that depend on (seed, step, process) alone.

A run that is killed and goes on draws exactly what it would have drawn, and nothing has to be saved for it.
"""

import random
from typing import Any

import numpy as np
import torch


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator for a key such as (seed, step, rank); different keys give independent streams."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def global_random_state() -> dict[str, Any]:
    """States of torch's, numpy's and Python's own generators, as JSON holds them. The training loop draws from
    (seed, step, rank) alone, so these matter only to what a library draws on its own."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
        "python": [random.getstate()[0], list(random.getstate()[1]), random.getstate()[2]],
    }


def restore_global_random_state(state: dict[str, Any]) -> None:
    """Take up what `global_random_state` returned."""
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
