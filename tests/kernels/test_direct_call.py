"""Calls that skip torch's dispatcher: only where nobody could tell, and with the same bits."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.kernels import BlockLayout, block_sparse, block_sparse_attention, modulation, norm_modulate
from mezzotint.kernels.direct_call import may_call_directly

LAYOUT = BlockLayout.full(block_q=16, block_k=16, num_q=40, num_k=40)


def inputs(grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 40, 8, generator=generator).requires_grad_(grad) for _ in range(3))
    return q, k, v


def test_gradients_modes_and_transforms_need_the_dispatcher() -> None:
    x, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert may_call_directly(x, None)
    assert not may_call_directly(x, leaf)
    with torch.no_grad():
        assert may_call_directly(x, leaf, torch.nn.Parameter(x))
    with FlopCounterMode(display=False):
        assert not may_call_directly(x)
    with torch._subclasses.FakeTensorMode() as mode:
        assert not may_call_directly(mode.from_tensor(x))
    torch.func.vmap(lambda row: pytest.fail("direct") if may_call_directly(row) else row)(torch.zeros(2, 2))


def test_both_ways_give_the_same_bits() -> None:
    q, k, v = inputs()
    shift = torch.ones(2, 8)
    direct = block_sparse_attention(q, k, v, LAYOUT), norm_modulate(q[:, 0], shift, shift)
    with FlopCounterMode(display=False) as counter:
        through = block_sparse_attention(q, k, v, LAYOUT), norm_modulate(q[:, 0], shift, shift)
    assert counter.get_total_flops() == LAYOUT.flops(8, heads=2, batch=2)
    for got, want in zip(direct, through, strict=True):
        assert isinstance(got, Tensor)
        assert isinstance(want, Tensor)
        assert torch.equal(got, want)


def test_the_backend_that_ran_is_known_either_way() -> None:
    q, k, v = inputs()
    block_sparse_attention(q, k, v, LAYOUT, backend="reference")
    assert block_sparse.last_backend() == "reference"
    norm_modulate(q[:, 0], q[:, 0, 0], q[:, 0, 0], backend="reference")
    assert modulation.last_backend() == "reference"


def test_a_gradient_is_recorded_where_one_is_wanted() -> None:
    q, k, v = inputs(grad=True)
    out = block_sparse_attention(q, k, v, LAYOUT)
    assert isinstance(out, Tensor)
    assert out.requires_grad
    assert norm_modulate(q[:, 0], q[:, 0, 0], q[:, 0, 0]).requires_grad
