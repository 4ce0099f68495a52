"""When our C kernels are faster than torch's own attention for dense attention on a CPU: one table, from measurement.

Sparse layouts always run in the C kernels where they are built.
"""

import torch
from torch import Tensor

from mezzotint.kernels.native_build import native_library
from mezzotint.kernels.native_call import instruction_set

FEWEST_SCORES = {
    ("avx512bf16", torch.bfloat16): (0, 0),
    ("avx512bf16", torch.float32): (0, 131_072),
    ("avx512", torch.bfloat16): (0, 0),
    ("avx512", torch.float32): (0, 131_072),
    ("avx2", torch.bfloat16): (16_384, 0),
    ("avx2", torch.float32): (16_384, 16_384),
}
"""Instruction set and dtype: the fewest scores (batch * heads * num_q * num_k) of a forward alone, and of a forward and
backward.

Measured at 16 heads of 64 to 128 channels on two cores each of Zen 4 (kind B) and Zen 5 (kind A). SDPA's time over
ours in bf16 was 1.0 at 64 tokens and 1.8 to 2.5 from 128 tokens to 4,096 forward, 2.1 to 2.8 with the backward (Zen 4),
and at least 1.4 and 2.8 (Zen 5). In fp32 on Zen 4 it was 1.1 to 1.3 from 128 tokens on, and 0.7 to 0.8 at 64 tokens
with the backward, of which half a millisecond is not arithmetic. The lower sets were forced on Zen 5, where torch keeps
AVX-512: machines that have no more were not measured. What is not in the table runs in torch.
"""


def prefers_native(q: Tensor, k: Tensor, needs_grad: bool) -> bool:
    """Whether dense attention of q [B, H, N, D] and k [B, G, M, D] is faster in the C kernels than in torch's SDPA on
    this machine.

    False where the kernels are not built or do not take the dtype.
    """
    if q.dtype not in (torch.float32, torch.bfloat16) or native_library() is None:
        return False
    fewest = FEWEST_SCORES.get((instruction_set(), q.dtype))
    batch, heads, num_q, _ = q.shape
    return fewest is not None and batch * heads * num_q * k.shape[2] >= fewest[needs_grad]
