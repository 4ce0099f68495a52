"""When our C kernels are faster than torch's own attention for dense attention on a CPU: one table, from measurement.

Sparse layouts always run in the C kernels where they are built.
"""

import torch

from mezzotint.kernels.cpu_attention import instruction_set
from mezzotint.kernels.native_build import native_library

FEWEST_PAIRS = {
    ("avx512bf16", torch.bfloat16): (0, 0),
    ("avx512bf16", torch.float32): (0, 0),
    ("avx512", torch.bfloat16): (0, 0),
    ("avx512", torch.float32): (0, 0),
    ("avx2", torch.bfloat16): (1024, 0),
    ("avx2", torch.float32): (1024, 1024),
}
"""Instruction set and dtype: the fewest num_q * num_k of a forward alone, and of a forward and backward.

Measured at 16 heads of 72 channels on two Zen 5 cores that other work shared, so the ratios are rough. SDPA's time over
ours was, forward and with the backward, at least 1.4 and 2.8 for avx512bf16 (bf16, 16 to 4,096 tokens), 1.2 and 2.0 for
avx512 and 1.1 and 1.1 for avx2 (16, 256 and 1,024 tokens), but for 0.93 and 0.95 with avx2 at 16 tokens. The lower sets
were forced on that machine, where torch keeps AVX-512; machines that have no more were not measured. What is not in the
table runs in torch.
"""


def prefers_native(dtype: torch.dtype, num_q: int, num_k: int, head_dim: int, needs_grad: bool) -> bool:
    """Whether dense attention of this size runs faster in the C kernels than in torch's SDPA on this machine.

    False where the kernels are not built or do not take the dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16) or native_library() is None:
        return False
    fewest = FEWEST_PAIRS.get((instruction_set(), dtype))
    return fewest is not None and num_q * num_k >= fewest[needs_grad]
