"""What is compared computes the same, and every point is measured."""

import pytest
import torch
from torch import Tensor

from mezzotint.kernels.expert_routing import expert_choice
from mezzotint.kernels.operations_benchmark import (
    OperationsSweep,
    call_of,
    dispatch_sides,
    expert_sides,
    num_points,
    products,
    run_operations,
)

SIDES = {"experts": ["one_hot", "torch", "products"], "dispatch": ["one_hot", "torch"], "norm_modulate": ["torch"]}


def test_all_sides_of_the_experts_agree() -> None:
    B, N, E, C, hidden = 3, 8, 4, 6, 10
    generator = torch.Generator().manual_seed(1)
    routing = expert_choice(torch.rand(B, N, E, generator=generator, dtype=torch.float64), 3)
    shapes = ((B * N, C), (E * B * 3,), (E, C, hidden), (E, hidden, C))
    given: list[Tensor] = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    sides = expert_sides(routing, B, N)
    upstream = torch.randn(B * N, C, generator=generator, dtype=torch.float64)
    found = {}
    for name, side in sides.items():
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out = side(*leaves)
        found[name] = [out, *torch.autograd.grad(out, leaves, upstream)]
    assert list(found) == ["ours", "one_hot", "torch"]
    for name in ("one_hot", "torch"):
        for got, want in zip(found[name], found["ours"], strict=True):
            torch.testing.assert_close(got, want)


def test_all_sides_of_dispatch_agree() -> None:
    B, N, E, C = 3, 8, 4, 6
    generator = torch.Generator().manual_seed(1)
    routing = expert_choice(torch.rand(B, N, E, generator=generator, dtype=torch.float64), 3)
    x, gate = torch.randn(B * N, C, dtype=torch.float64), torch.rand(E * B * 3, dtype=torch.float64)
    found = {}
    for name, side in dispatch_sides(routing, B, N).items():
        leaves = [x.clone().requires_grad_(), gate.clone().requires_grad_()]
        found[name] = [out := side(*leaves), *torch.autograd.grad(out.square().sum(), leaves)]
    assert list(found) == ["ours", "one_hot", "torch"]
    for name in ("one_hot", "torch"):
        for got, want in zip(found[name], found["ours"], strict=True):
            torch.testing.assert_close(got, want)


def test_micro_dits_blocks_are_measured_by_default() -> None:
    sweep = OperationsSweep()
    assert 1024 in sweep.tokens
    assert {512, 1024} <= set(sweep.widths)
    assert sweep.experts == 8


def test_the_products_are_those_of_all_rows() -> None:
    rows, w1, w2 = torch.eye(3)[None].repeat(2, 1, 1), torch.full((2, 3, 4), 10.0), torch.ones(2, 4, 5)
    assert products(rows, w1, w2).eq(40.0).all()  # the GELU of 10 is 10


def test_a_call_gives_the_gradients_of_all_that_is_given() -> None:
    given = [torch.tensor([2.0]), torch.tensor([3.0])]
    gradients = call_of(lambda a, b: a * b, given, True)()
    assert gradients[0] / 3 == gradients[1] / 2  # times the same upstream gradient
    assert call_of(lambda a, b: a * b, given, False)() == torch.tensor([6.0])


def test_every_point_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = OperationsSweep(tokens=(16, 300), widths=(16,), dtypes=(torch.float32,), experts=4, capacities=(1.0, 2.0))
    rows = list(run_operations(sweep, torch.device("cpu")))
    assert len(rows) == num_points(sweep) == 2 * 2 * 5
    points = {(row.operation, row.tokens, row.capacity, row.direction) for row in rows}
    assert len(points) == len(rows)
    assert {row.tokens for row in rows} == {16, 256}  # whole pictures
    for row in rows:
        others = SIDES[row.operation]
        assert list(row.seconds) == ["ours", *others]
        assert all(row.over(side) == row.seconds[side] / row.seconds["ours"] for side in others)
