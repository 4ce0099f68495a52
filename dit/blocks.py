"""A transformer block and the last layer. One modulation table is shared by all blocks (PixArt's adaLN-single,
arXiv 2310.00426): the table is computed once a pass, and each block adds a small table of its own.

Shape suffixes: B batch, N tokens, L text tokens, C hidden size, D head channels.
"""

import torch
from torch import Tensor, nn

from mezzotint.dit.attention import CrossAttention, SelfAttention
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.layers import ModulatedNorm, make_mlp, make_norm
from mezzotint.dit.sparse_attention import SparseAttention


class Block(nn.Module):
    """x += gate * attention(norm(x)); [x += cross-attention(norm(x), text)]; x += gate * mlp(norm(x))."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(config)
        self.attn = SelfAttention(config)
        self.norm2 = ModulatedNorm(config)
        self.mlp = make_mlp(config)
        self.table = nn.Parameter(torch.zeros(6, config.hidden_size))
        self.cross_norm = make_norm(config) if config.text_conditioning == "cross" else None
        self.cross = CrossAttention(config) if config.text_conditioning == "cross" else None

    def last_linears(self) -> list[nn.Linear]:
        """The Linears whose outputs are added to the tokens."""
        return [self.attn.proj, self.mlp.fc2] + ([self.cross.proj] if self.cross is not None else [])

    def forward(
        self, x_BNC: Tensor, shared_B6C: Tensor, cos_ND: Tensor, sin_ND: Tensor, sparse: SparseAttention | None = None,
        text_BLC: Tensor | None = None, mask_BL: Tensor | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared_B6C + self.table).unbind(1)
        attended = self.attn(self.norm1(x_BNC, shift1, scale1), cos_ND, sin_ND, sparse)
        x_BNC = torch.addcmul(x_BNC, attended, gate1[:, None])
        if self.cross is not None:
            assert self.cross_norm is not None
            x_BNC = x_BNC + self.cross(self.cross_norm(x_BNC), text_BLC, mask_BL)
        fed = self.mlp(self.norm2(x_BNC, shift2, scale2))
        return torch.addcmul(x_BNC, fed, gate2[:, None])


class FinalLayer(nn.Module):
    """Norm, modulation, and a Linear from each image token to the values (or components) of its patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = ModulatedNorm(config)
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.output_values)

    def forward(self, x_BNC: Tensor, condition_BC: Tensor) -> Tensor:
        shift, scale = self.modulation(condition_BC).chunk(2, dim=1)
        return self.linear(self.norm(x_BNC, shift, scale))
