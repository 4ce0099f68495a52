"""The parts of MicroDiT (arXiv 2407.15811): blocks of any width with experts, the way of the caption, the last layer.

Norms have a weight and no bias; queries and keys are normalised over their whole width, not head by head; matrices in
attention and feed-forward have no bias. Shape suffixes: B batch, N tokens, L text tokens, C size of the tokens,
A size of the attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.attention import attend
from mezzotint.dit.experts import Experts
from mezzotint.dit.layers import NORM_EPS, SwigluMlp
from mezzotint.dit.micro_config import MicroBlockShape, MicroDiTConfig
from mezzotint.kernels import norm_modulate


def weighted_norm(size: int) -> nn.LayerNorm:
    """A norm with a weight and no bias."""
    return nn.LayerNorm(size, eps=NORM_EPS, bias=False)


class ModulatedWeightedNorm(nn.Module):
    """norm(x) * weight * (1 + scale) + shift, one scale and shift a picture."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x_BNC: Tensor, shift_BC: Tensor, scale_BC: Tensor) -> Tensor:
        factor_BC = self.weight * (1 + scale_BC)  # on B rows, so that the N tokens take one kernel
        return norm_modulate(x_BNC, shift_BC, factor_BC - 1, eps=NORM_EPS)


class WideSelfAttention(nn.Module):
    """Self-attention in a width of its own."""

    def __init__(self, size: int, attention_size: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(size, 3 * attention_size, bias=False)
        self.proj = nn.Linear(attention_size, size, bias=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BNC).chunk(3, dim=2)
        return self.proj(_attend_normed(q, k, v, self.head_dim))


class WideCrossAttention(nn.Module):
    """Attention to text tokens of the same size."""

    def __init__(self, size: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(size, size, bias=False)
        self.kv = nn.Linear(size, 2 * size, bias=False)
        self.proj = nn.Linear(size, size, bias=False)

    def forward(self, x_BNC: Tensor, text_BLC: Tensor) -> Tensor:
        k, v = self.kv(text_BLC).chunk(2, dim=2)
        return self.proj(_attend_normed(self.q(x_BNC), k, v, self.head_dim))


def _attend_normed(q_BNA: Tensor, k_BMA: Tensor, v_BMA: Tensor, head_dim: int) -> Tensor:
    """Attention [B, N, A] whose queries and keys are normalised before they are cut into heads."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, head_dim)).transpose(1, 2)

    def normed(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)

    return attend(heads(normed(q_BNA)), heads(normed(k_BMA)), heads(v_BMA)).transpose(1, 2).flatten(2)


class MicroBlock(nn.Module):
    """x += gate * attention(norm(x)); x += cross-attention(norm(x), text); x += gate * feed-forward(norm(x))."""

    def __init__(self, shape: MicroBlockShape) -> None:
        super().__init__()
        self.norm1 = ModulatedWeightedNorm(shape.size)
        self.attn = WideSelfAttention(shape.size, shape.attention_size, shape.head_dim)
        self.cross_norm = weighted_norm(shape.size)
        self.cross = WideCrossAttention(shape.size, shape.head_dim)
        self.norm2 = ModulatedWeightedNorm(shape.size)
        self.mlp: nn.Module = (
            Experts(shape.size, shape.mlp_size, shape.num_experts, shape.expert_capacity)
            if shape.num_experts else SwigluMlp(shape.size, shape.mlp_size)
        )
        self.modulation = nn.Linear(shape.condition_size, 6 * shape.size)

    def forward(self, x_BNC: Tensor, text_BLC: Tensor, condition: Tensor) -> Tensor:
        """condition: the vector of time and text, behind its GELU [B, condition size]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x_BNC = torch.addcmul(x_BNC, self.attn(self.norm1(x_BNC, shift1, scale1)), gate1[:, None])
        x_BNC = x_BNC + self.cross(self.cross_norm(x_BNC), text_BLC)
        return torch.addcmul(x_BNC, self.mlp(self.norm2(x_BNC, shift2, scale2)), gate2[:, None])

    def initialise(self, out_std: float) -> None:
        """Modulation zero, so both gates are shut; out_std: deviation of the matrices whose outputs are added."""
        nn.init.zeros_(self.modulation.weight)
        initialise_half(self.attn, self.mlp, out_std)
        for linear in (self.cross.q, self.cross.kv):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.cross.proj.weight, std=out_std)


def initialise_half(attn: WideSelfAttention, mlp: nn.Module, out_std: float) -> None:
    """Deviation 0.02 into attention and feed-forward, out_std out of them."""
    nn.init.normal_(attn.qkv.weight, std=0.02)
    nn.init.normal_(attn.proj.weight, std=out_std)
    if isinstance(mlp, Experts):
        mlp.reset(out_std)
    elif isinstance(mlp, SwigluMlp):
        nn.init.normal_(mlp.gate.weight, std=0.02)
        for linear in (mlp.fc1, mlp.fc2):
            nn.init.normal_(linear.weight, std=out_std)


class TextBlock(nn.Module):
    """The block that text tokens run through before the others attend to them: x += attention(norm(x)),
    x += feed-forward(norm(x)). It starts as the identity."""

    def __init__(self, config: MicroDiTConfig) -> None:
        super().__init__()
        self.norm1 = weighted_norm(config.hidden_size)
        self.attn = WideSelfAttention(config.hidden_size, config.hidden_size, config.head_dim)
        self.norm2 = weighted_norm(config.hidden_size)
        self.mlp = SwigluMlp(config.hidden_size, config.text_mlp_size)

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BLC = x_BLC + self.attn(self.norm1(x_BLC))
        return x_BLC + self.mlp(self.norm2(x_BLC))

    def initialise(self) -> None:
        initialise_half(self.attn, self.mlp, out_std=0.02)
        for linear in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(linear.weight)


class GeluEmbed(nn.Module):
    """Linear, tanh-GELU, a norm for text, Linear; with biases."""

    def __init__(self, in_size: int, hidden_size: int, *, normed: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_size, hidden_size)
        self.norm = weighted_norm(hidden_size) if normed else nn.Identity()
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x), approximate="tanh")))

    def initialise(self) -> None:
        for linear in (self.fc1, self.fc2):
            nn.init.normal_(linear.weight, std=0.02)


class NormedLinear(nn.Module):
    """Norm and a Linear without bias, from the backbone's size to the patch-mixer's or back."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.norm = weighted_norm(in_size)
        self.linear = nn.Linear(in_size, out_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class MicroFinalLayer(nn.Module):
    """Norm, modulation, and a Linear from each token to the values of its patch."""

    def __init__(self, config: MicroDiTConfig) -> None:
        super().__init__()
        self.norm = ModulatedWeightedNorm(config.hidden_size)
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.patch_values)

    def forward(self, x_BNC: Tensor, condition_BC: Tensor) -> Tensor:
        shift, scale = self.modulation(condition_BC).chunk(2, dim=1)
        return self.linear(self.norm(x_BNC, shift, scale))

    def initialise(self) -> None:
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.linear.weight)
