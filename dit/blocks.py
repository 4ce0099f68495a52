"""A transformer block and the last layer.

x += gate * mix(norm(x)); [x += cross-attention(norm(x), text)]; x += gate * mlp(norm(x)). How tokens are mixed is the
block's role in a segment; where shift, scale and gate come from is the kind of block.

Shape suffixes: B batch, N tokens, L text tokens, C hidden size, D head channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mezzotint.dit.attention import CrossAttention, MeanAttention, SelfAttention
from mezzotint.dit.block_shape import BlockShape
from mezzotint.dit.experts import Experts
from mezzotint.dit.layers import NORM_EPS, ModulatedNorm, make_mlp, make_norm
from mezzotint.dit.segment_layout import Role
from mezzotint.dit.segments import Merge
from mezzotint.dit.surroundings import Surroundings


class ModulatedBlock(nn.Module):
    """What all kinds of blocks share. mlp_norm_eps: added to the variance before the feed-forward. experts: take its
    place."""

    def __init__(
        self, config: BlockShape, role: Role = "dense", mlp_norm_eps: float = NORM_EPS, experts: Experts | None = None
    ) -> None:
        super().__init__()
        self.role = role
        self.norm1 = ModulatedNorm(config)
        self.attn = make_mixer(config, role)
        self.norm2 = ModulatedNorm(config, mlp_norm_eps)
        self.mlp = make_mlp(config) if experts is None else experts
        self.cross_norm = make_norm(config) if config.text_conditioning == "cross" else None
        self.cross = CrossAttention(config) if config.text_conditioning == "cross" else None
        self.merge = Merge(config.hidden_size) if role == "recovery" else None

    def last_linears(self) -> list[nn.Linear]:
        """The Linears whose outputs are added to the tokens; experts have none."""
        linears = [self.attn.proj] + ([] if isinstance(self.mlp, Experts) else [self.mlp.fc2])
        return linears + ([self.cross.proj] if self.cross is not None else [])

    def modulate(self, given: Tensor) -> Sequence[Tensor]:
        """Shift, scale and gate of both halves, six of [B, C], from what the network gives to each block."""
        raise NotImplementedError

    def forward(self, x_BNC: Tensor, given: Tensor, around: Surroundings) -> Tensor:
        """Tokens of one density to the same; `around.other` holds those of the other where the role needs them."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(given)
        if self.merge is not None:
            assert around.other is not None
            assert around.grids is not None
            x_BNC = self.merge(around.other, x_BNC, around.grids)
        other = None if around.other is None else self.norm1(around.other, shift1, scale1)
        mixed = self.mix(self.norm1(x_BNC, shift1, scale1), other, around)
        x_BNC = torch.addcmul(x_BNC, mixed, gate1[:, None])
        if self.cross is not None:
            assert self.cross_norm is not None
            x_BNC = x_BNC + self.cross(self.cross_norm(x_BNC), around.text, around.text_mask)
        fed = self.feed(self.norm2(x_BNC, shift2, scale2), around)
        return torch.addcmul(x_BNC, fed, gate2[:, None])

    def feed(self, x_BNC: Tensor, around: Surroundings) -> Tensor:
        """The feed-forward half; experts never take padding for a token."""
        return self.mlp(x_BNC, around.real) if isinstance(self.mlp, Experts) else self.mlp(x_BNC)

    def mix(self, x_BNC: Tensor, other_BMC: Tensor | None, around: Surroundings) -> Tensor:
        """What each token gets of the others [B, N, C], or [B, 1, C] where all get the same."""
        if isinstance(self.attn, MeanAttention):
            return self.attn(x_BNC)
        if isinstance(self.attn, CrossAttention):
            return self.attn(x_BNC, other_BMC, None, around.rope, around.other_rope)
        return self.attn(x_BNC, around.rope, around.sparse)


def make_mixer(config: BlockShape, role: Role) -> SelfAttention | CrossAttention | MeanAttention:
    """Self-attention for dense and sparse blocks, attention to the other density to change it, the mean to pool."""
    if role == "pool":
        return MeanAttention(config)
    if role in ("generation", "recovery"):
        return CrossAttention(config, qk_norm=config.qk_norm)
    return SelfAttention(config)


class Block(ModulatedBlock):
    """One modulation table is shared by all blocks (PixArt's adaLN-single, arXiv 2310.00426): it is computed once a
    pass, and each block adds a small table of its own."""

    def __init__(self, config: BlockShape, role: Role = "dense", experts: Experts | None = None) -> None:
        super().__init__(config, role, experts=experts)
        self.table = nn.Parameter(torch.zeros(6, config.hidden_size))

    def modulate(self, given: Tensor) -> Sequence[Tensor]:
        """given: the shared table [B, 6, C]."""
        return (given + self.table).unbind(1)


class FinalLayer(nn.Module):
    """Norm, modulation, and a Linear from each image token to the values (or components) of its patch."""

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.norm = ModulatedNorm(config)
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.output_values)

    def forward(self, x_BNC: Tensor, condition_BC: Tensor) -> Tensor:
        shift, scale = self.modulation(condition_BC).chunk(2, dim=1)
        return self.linear(self.norm(x_BNC, shift, scale))
