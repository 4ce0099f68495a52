"""A feed-forward half made of experts: each takes the tokens of a picture that it scores highest (expert choice, arXiv
2202.09368; MicroDiT, arXiv 2407.15811, section 2.3).

Tokens are gathered for their experts and scattered back; nothing grows with tokens times experts times capacity.
Shape suffixes: B batch, N tokens, R tokens that count, C hidden size, E experts, F hidden channels of an expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.expert_share import tokens_per_expert
from mezzotint.kernels import ExpertRouting, expert_choice, expert_mlp


class Experts(nn.Module):
    """Sum of gate * expert(token) over the experts that chose the token; 0 where none did.

    An expert is two matrices with an exact GELU between them; its gate is its share of the softmax over experts.
    """

    def __init__(self, hidden_size: int, mlp_size: int, num_experts: int, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden_size, mlp_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, mlp_size, hidden_size))
        self.reset(0.02)

    @torch.no_grad()
    def reset(self, out_std: float) -> None:
        """Normal weights: deviation 0.02 in the gate and the first matrices, out_std in the second."""
        for weights, std in ((self.gate.weight, 0.02), (self.w1, 0.02), (self.w2, out_std)):
            nn.init.normal_(weights, std=std)

    def forward(self, x_BNC: Tensor, real_R: Tensor | None = None) -> Tensor:
        """real: places of the tokens that may be chosen, int64, alike in all pictures; None is all of them."""
        B, N, C = x_BNC.shape
        # Two bf16 scores that differ in truth would often tie.
        scores_BNE = F.softmax(self.gate(x_BNC), dim=-1, dtype=torch.promote_types(x_BNC.dtype, torch.float32))
        out = expert_mlp(x_BNC.reshape(B * N, C), self._choose(scores_BNE, real_R), self.w1, self.w2)
        return out.view(B, N, C)

    def _choose(self, scores_BNE: Tensor, real_R: Tensor | None) -> ExpertRouting:
        _, N, E = scores_BNE.shape
        if real_R is None:
            return expert_choice(scores_BNE, tokens_per_expert(self.capacity, E, N))
        R = len(real_R)
        among = expert_choice(scores_BNE[:, real_R], tokens_per_expert(self.capacity, E, R))
        index = among.index // R * N + real_R[among.index % R]
        return ExpertRouting(index, among.gate, among.offsets)
