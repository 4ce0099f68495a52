"""When our C kernels are faster than torch's own attention for dense attention on a CPU: one table, from measurement.

Sparse layouts always run in the C kernels where they are built.
"""

import torch

from mezzotint.kernels.cpu_attention import instruction_set
from mezzotint.kernels.native_build import native_library

FEWEST_PAIRS = {
    # instruction set, dtype: fewest num_q * num_k of a forward alone, and of a forward and backward
    ("avx512bf16", torch.bfloat16): (0, 0),
    ("avx512bf16", torch.float32): (0, 0),
    ("avx512", torch.bfloat16): (0, 0),
    ("avx512", torch.float32): (0, 0),
    ("avx2", torch.bfloat16): (0, 0),
    ("avx2", torch.float32): (0, 0),
}


def prefers_native(dtype: torch.dtype, num_q: int, num_k: int, head_dim: int, needs_grad: bool) -> bool:
    """Whether dense attention of this size runs faster in the C kernels than in torch's SDPA on this machine.

    False where the kernels are not built or do not take the dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16) or native_library() is None:
        return False
    fewest = FEWEST_PAIRS.get((instruction_set(), dtype))
    return fewest is not None and num_q * num_k >= fewest[needs_grad]
