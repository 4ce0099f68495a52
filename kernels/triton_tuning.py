"""Which configuration a Triton attention kernel runs with: the table's, or on a GPU the fastest of a few."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels import triton_configs as configs
from mezzotint.kernels.triton_configs import KernelShape, TileConfig

#: Set to 0 to take every configuration from the table, so that two processes give the same bits.
AUTOTUNE_VARIABLE = "MEZZOTINT_TRITON_AUTOTUNE"

_INTERPRETED_ARCH = 90
_FASTEST: dict[tuple[Any, ...], TileConfig] = {}


def pick_config(pass_name: str, shape: KernelShape, q: Tensor, run: Callable[[TileConfig], Any]) -> TileConfig:
    """The table's entry, or on a GPU the fastest of the candidates, timed at the first call of its kind.

    run launches the pass with a configuration and returns Triton's compiled kernel. Raises ValueError on a device
    before sm_80.
    """
    if interpreting():
        return configs.table_config(pass_name, _INTERPRETED_ARCH, shape)
    arch = configs.table_arch(_device_arch())
    if not _may_time(q):
        return configs.table_config(pass_name, arch, shape)
    key = (pass_name, torch.cuda.get_device_name(q.device), q.dtype, shape)
    if key not in _FASTEST:
        choices = configs.candidates(pass_name, arch, shape)
        _FASTEST[key] = min(choices, key=lambda config: time_ms(run, config))
    return _FASTEST[key]


def time_ms(run: Callable[[TileConfig], Any], config: TileConfig) -> float:
    """Median time of a pass in milliseconds; infinite where it spills registers or the device lacks the room for it."""
    import triton

    try:
        compiled = run(config)
        if compiled is not None and compiled.n_spills > 0:
            return math.inf
        return triton.testing.do_bench(lambda: run(config), warmup=10, rep=40, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return math.inf


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 at import), on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _device_arch() -> int:
    """Of the device that Triton compiles for, 10 times its compute capability."""
    import triton

    return int(triton.runtime.driver.active.get_current_target().arch)


def _may_time(q: Tensor) -> bool:
    """Whether autotuning may run: not when switched off, nor under deterministic algorithms, nor in a graph capture."""
    wanted = q.is_cuda and os.environ.get(AUTOTUNE_VARIABLE, "1") != "0"
    return wanted and not torch.are_deterministic_algorithms_enabled() and not torch.cuda.is_current_stream_capturing()
