"""How tokens are mixed: self-attention over one sequence, cross-attention to the tokens of another, and the mean.

Shape suffixes: B batch, N tokens, M other tokens, C hidden size, H heads, D head channels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.block_shape import BlockShape
from mezzotint.dit.positions import apply_rope
from mezzotint.dit.sparse_attention import SparseAttention
from mezzotint.kernels import BlockLayout, block_sparse_attention

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the tokens' rotary positions, [N, D] each."""


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
    """Multi-head self-attention; queries and keys normalised where the shape says so, turned where a table is given."""

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_norm, self.k_norm = _head_norm(config.qk_norm, config), _head_norm(config.qk_norm, config)

    def forward(self, x_BNC: Tensor, rope: Rope | None = None, sparse: SparseAttention | None = None) -> Tensor:
        """Attention of every token to every token, or to those that `sparse` keeps."""
        B, N, _ = x_BNC.shape
        q, k, v = self.qkv(x_BNC).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = _turn(self.q_norm(q), rope), _turn(self.k_norm(k), rope)
        out_BHND = attend(q, k, v) if sparse is None else sparse(q, k, v)
        return self.proj(out_BHND.transpose(1, 2).reshape(B, N, -1))


def _head_norm(normed: bool, config: BlockShape) -> nn.Module:
    return nn.LayerNorm(config.head_dim, eps=1e-6) if normed else nn.Identity()


def _turn(x: Tensor, rope: Rope | None) -> Tensor:
    return x if rope is None else apply_rope(x, *rope)


class CrossAttention(nn.Module):
    """Tokens attend to the tokens of another sequence: text, or the same picture at another density."""

    def __init__(self, config: BlockShape, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_norm, self.k_norm = _head_norm(qk_norm, config), _head_norm(qk_norm, config)

    def forward(
        self, x_BNC: Tensor, other_BMC: Tensor, mask_BM: Tensor | None = None, rope: Rope | None = None,
        other_rope: Rope | None = None,
    ) -> Tensor:
        """mask: bool, True where a token of the other sequence counts."""
        B, N, _ = x_BNC.shape
        q = self.q(x_BNC).view(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(other_BMC).view(B, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = _turn(self.q_norm(q), rope), _turn(self.k_norm(k), other_rope)
        out_BHND = attend(q, k, v, None if mask_BM is None else mask_BM[:, None, None, :])
        return self.proj(out_BHND.transpose(1, 2).reshape(B, N, -1))


class MeanAttention(nn.Module):
    """Every token gets the mean of the values: attention with equal weights, without queries and keys."""

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.v = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """What each token gets, [B, 1, C]. The mean is taken first: the values of a mean are the mean of the values."""
        return self.proj(self.v(x_BNC.mean(dim=1, keepdim=True)))


def text_mask_without_empty_rows(text_mask_BL: Tensor | None, text_BLC: Tensor) -> Tensor:
    """bool [B, L] for cross-attention; a row that counts no token counts all, since a softmax over nothing is NaN."""
    if text_mask_BL is None:
        return torch.ones(text_BLC.shape[:2], dtype=torch.bool, device=text_BLC.device)
    return text_mask_BL | ~text_mask_BL.any(dim=1, keepdim=True)
