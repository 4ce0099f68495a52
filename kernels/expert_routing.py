"""Which tokens go to which expert: lists of assignments in the order of the experts, and no one-hot matrix.

Shape suffixes: B pictures, N tokens a picture, T tokens in all, E experts, A assignments (pairs of a token and an
expert).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check, check_floating, is_whole


@dataclass(frozen=True, eq=False, slots=True)
class ExpertRouting:
    """Assignments, sorted by expert: what `gather_tokens`, `grouped_linear` and `scatter_add` take.

    index: int64 [A], the token of each assignment.
    gate: [A], what the expert's answer for it is multiplied by; gradients flow to the scores.
    offsets: int64 [E + 1], expert e has assignments offsets[e] to offsets[e + 1] - 1.
    """

    index: Tensor
    gate: Tensor
    offsets: Tensor


def expert_choice(scores: Tensor, capacity: int) -> ExpertRouting:
    """Each expert takes the `capacity` tokens of each picture that score highest with it (arXiv 2202.09368; MicroDiT,
    arXiv 2407.15811 section 2.3). A token may be taken by several experts or by none.

    scores: [B, N, E], such as softmax over experts. Tokens are numbered through: token n of picture b is b * N + n.
    capacity: tokens an expert takes of a picture, 1 to N.
    Raises ValueError naming the argument, its value and what was expected.
    """
    check_floating("scores", scores, 3, "[pictures, tokens, experts]")
    B, N, E = scores.shape
    fits = is_whole(capacity) and 1 <= capacity <= N
    check(fits, "capacity", capacity, f"1 to {N}, the tokens of a picture")
    top = scores.permute(2, 0, 1).topk(capacity, dim=2)
    first = torch.arange(B, device=scores.device)[None, :, None] * N
    offsets = torch.arange(E + 1, device=scores.device) * (B * capacity)
    return ExpertRouting((top.indices + first).reshape(-1), top.values.reshape(-1), offsets)


def token_choice(scores: Tensor, num_experts: int) -> ExpertRouting:
    """Each token takes the `num_experts` experts that it scores highest with (arXiv 1701.06538). No expert drops any.

    scores: [T, E]. num_experts: 1 to E.
    Raises ValueError naming the argument, its value and what was expected.
    """
    check_floating("scores", scores, 2, "[tokens, experts]")
    E = scores.shape[1]
    fits = is_whole(num_experts) and 1 <= num_experts <= E
    check(fits, "num_experts", num_experts, f"1 to {E}, the experts of the scores")
    top = scores.topk(num_experts, dim=1)
    experts, order = top.indices.reshape(-1).sort(stable=True)
    offsets = torch.searchsorted(experts, torch.arange(E + 1, device=scores.device))
    return ExpertRouting(order // num_experts, top.values.reshape(-1)[order], offsets)
