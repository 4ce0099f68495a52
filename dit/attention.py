"""Self-attention over one sequence, and cross-attention from image tokens to text tokens.

Shape suffixes: B batch, N tokens, L text tokens, C hidden size, H heads, D head channels.
"""

from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.positions import apply_rope
from mezzotint.dit.sparse_attention import SparseAttention
from mezzotint.kernels import BlockLayout, block_sparse_attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over [B, H, N, D] tensors. `mask` is bool [B, 1, 1, L], True where a key counts.

    On a CPU it runs in our kernels wherever they were measured to be faster than SDPA (kernels/cpu_dispatch.py).
    """
    if mask is not None or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = block_sparse_attention(q, k, v, _every_pair(q.shape[2], k.shape[2]))
    assert isinstance(out, Tensor)  # lse was not asked for
    return out


@lru_cache(maxsize=64)
def _every_pair(num_q: int, num_k: int) -> BlockLayout:
    return BlockLayout.full(block_q=64, block_k=64, num_q=num_q, num_k=num_k)


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary positions."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(config.head_dim, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(
        self, x_BNC: Tensor, cos_ND: Tensor, sin_ND: Tensor, sparse: SparseAttention | None = None
    ) -> Tensor:
        """Attention of every token to every token, or to those that `sparse` keeps."""
        B, N, _ = x_BNC.shape
        q, k, v = self.qkv(x_BNC).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = apply_rope(self.q_norm(q), cos_ND, sin_ND), apply_rope(self.k_norm(k), cos_ND, sin_ND)
        out_BHND = attend(q, k, v) if sparse is None else sparse(q, k, v)
        return self.proj(out_BHND.transpose(1, 2).reshape(B, N, -1))


class CrossAttention(nn.Module):
    """Image tokens attend to text tokens; padded text tokens are masked out."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BNC: Tensor, text_BLC: Tensor, mask_BL: Tensor) -> Tensor:
        B, N, _ = x_BNC.shape
        q = self.q(x_BNC).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(text_BLC).view(B, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out_BHND = attend(q, k, v, mask_BL[:, None, None, :])
        return self.proj(out_BHND.transpose(1, 2).reshape(B, N, -1))
