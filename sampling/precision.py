"""Which number format to compute in, by measurement: a CPU may take bf16 and emulate it slowly."""

import time
from functools import cache

import torch
import torch.nn.functional as F

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def dtype_name(dtype: torch.dtype) -> str:
    """ "bf16" or "fp32"."""
    return next(name for name, value in DTYPES.items() if value == dtype)


@cache
def fastest_dtype(device: str) -> torch.dtype:
    """bf16 on a GPU that has it, and on a CPU where a matrix product really runs faster in it.

    The product is large enough that the answer is the same every time: with bf16 in hardware it runs three to
    five times faster, without it slower than fp32, and a picture must not depend on what else the machine does.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.device(device).type != "cpu":
        return torch.float32
    return min((torch.bfloat16, torch.float32), key=_product_seconds)


def _product_seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(768, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)
