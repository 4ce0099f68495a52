"""Random numbers that depend on (seed, step, process) alone.

A run that is killed and goes on draws exactly what it would have drawn, and nothing has to be saved for it.
"""

import numpy as np
import torch


def generator_for(*key: int) -> torch.Generator:
    """A CPU generator for a key such as (seed, step, rank); different keys give independent streams."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)
