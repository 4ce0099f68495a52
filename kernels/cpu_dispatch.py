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

Measured at 16 heads of 72 channels, 16 to 4,096 tokens, two Zen 5 cores shared with other work (SDPA's time over ours):
avx512bf16 1.4 to 11 forward and 3.6 or more with the backward; avx512 1.3 and 2.1 or more; avx2 1.1 or more in both, but
for 0.93 and 0.95 at 16 tokens. The lower sets were forced on that machine, where torch keeps AVX-512: on one that has
no more than AVX2, torch is slower as well. What is not in the table was not measured, and runs in torch.
"""


def prefers_native(dtype: torch.dtype, num_q: int, num_k: int, head_dim: int, needs_grad: bool) -> bool:
    """Whether dense attention of this size runs faster in the C kernels than in torch's SDPA on this machine.

    False where the kernels are not built or do not take the dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16) or native_library() is None:
        return False
    fewest = FEWEST_PAIRS.get((instruction_set(), dtype))
    return fewest is not None and num_q * num_k >= fewest[needs_grad]
