"""Experts in a block against their definition, token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.dit.expert_share import tokens_per_expert
from mezzotint.dit.experts import Experts


def by_hand(experts: Experts, x_BNC: Tensor, real: list[int]) -> Tensor:
    """Loops over pictures and experts; only the tokens in `real` may be chosen."""
    out = torch.zeros_like(x_BNC)
    for picture, tokens in enumerate(x_BNC):
        shares = (tokens[real] @ experts.gate.weight.T).softmax(-1)
        count = max(1, int(experts.capacity * len(real) / len(experts.w1)))
        for expert, (w1, w2) in enumerate(zip(experts.w1, experts.w2, strict=True)):
            for place in shares[:, expert].argsort(descending=True)[:count]:
                token = tokens[real[place]]
                out[picture, real[place]] += shares[place, expert] * (F.gelu(token @ w1) @ w2)
    return out


@pytest.mark.parametrize("real", [list(range(12)), [0, 1, 4, 5, 6, 9, 11], [3]])
def test_each_expert_takes_its_best_tokens_of_each_picture(real: list[int]) -> None:
    torch.manual_seed(0)
    experts = Experts(6, 10, num_experts=4, capacity=1.5).double()
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(3, 12, 6, dtype=torch.float64, requires_grad=True)
    places = None if len(real) == 12 else torch.tensor(real)
    gradients = []
    for out in (experts(x, places), by_hand(experts, x, real)):
        gradients.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *experts.parameters()])])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("capacity", "experts", "tokens", "count"), [(2, 8, 256, 64), (2, 8, 63, 15), (1, 8, 5, 1),
                                                                      (8, 8, 5, 5), (1.5, 4, 7, 2)])
def test_an_expert_takes_its_share_of_the_tokens(capacity: float, experts: int, tokens: int, count: int) -> None:
    assert tokens_per_expert(capacity, experts, tokens) == count


def test_near_scores_do_not_tie_in_bf16() -> None:
    """The softmax of bf16 scores is fp32, so the gates are."""
    experts = Experts(8, 8, num_experts=2, capacity=1.0).bfloat16()
    scores: list[Tensor] = []
    choose = experts._choose
    experts._choose = lambda given, real: (scores.append(given), choose(given, real))[1]  # type: ignore[method-assign]
    assert experts(torch.randn(1, 4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert scores[0].dtype == torch.float32
