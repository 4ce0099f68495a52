"""The Triton kernels of attention against an explicit fp64 reference, small enough for the interpreter."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mezzotint.kernels import triton_attention, triton_configs
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.reference import reference_attention

BF16 = torch.bfloat16

CASES: dict[str, dict[str, Any]] = {
    "ragged on both sides": {},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": BF16},
    "one token each": {"num_q": 1, "num_k": 1, "density": 1.0},
    "one query": {"num_q": 1, "num_k": 40, "density": 1.0},
    "one key": {"num_q": 40, "num_k": 1, "density": 1.0},
    "nothing kept": {"density": 0.0},
    "everything kept": {"density": 1.0},
    "whole blocks": {"num_q": 32, "num_k": 48},
    "batch": {"batch": 2, "num_q": 32, "num_k": 32},
    "a layout for each batch and head": {
        "batch": 2, "heads": 4, "kv_heads": 2, "layout_batch": 2, "layout_heads": 4, "density": 0.4,
    },
    "a layout for each head": {"kv_heads": 2, "layout_heads": 2, "density": 0.4},
    "blocks that differ": {"block_q": 32, "block_k": 16, "num_q": 50},
    "blocks that differ the other way": {"block_q": 16, "block_k": 32, "num_k": 70},
    "head groups of 1": {"kv_heads": 2, "num_q": 24, "num_k": 24},
    "head groups of 4": {"heads": 4, "num_q": 24, "num_k": 24},
    "head groups of 8": {"heads": 8, "num_q": 24, "num_k": 24, "layout_heads": 8},
    "scale 4": {"amplitude": 4.0},
    "scale 16": {"amplitude": 16.0},
    "scale 16 in bf16": {"amplitude": 16.0, "dtype": BF16},
    "gradient through lse": {"with_d_lse": True},
    "bias for all": {"bias": (1, 1), "batch": 2, "num_q": 24},
    "bias for each head": {"bias": (1, 2), "with_d_lse": True},
    "bias for each batch": {"bias": (2, 1), "batch": 2, "num_q": 24, "kv_heads": 2},
    "padding of NaN": {"lengths": True, "density": 0.8},
    "padding at scale 16": {"lengths": True, "density": 0.8, "amplitude": 16.0},
    "values wider than keys": {"head_dim": 40, "value_dim": 72, "num_q": 24, "num_k": 24},
    "values narrower than keys": {"head_dim": 72, "value_dim": 8, "num_q": 24, "num_k": 24},
    "strides that are not whole vectors": {"head_dim": 40, "guard": 3, "num_q": 24},
    "masks": {"partial": True},
    "masks in bf16": {"partial": True, "dtype": BF16},
    "masks for each batch and head": {
        "partial": True, "batch": 2, "heads": 4, "kv_heads": 2, "layout_batch": 2, "layout_heads": 4,
    },
    "masks of two words": {"partial": True, "block_q": 32, "block_k": 64, "num_k": 100, "heads": 1},
    "masks of two words the other way": {"partial": True, "block_q": 64, "block_k": 32, "num_q": 100, "heads": 1},
    "masks and padding of NaN": {"partial": True, "lengths": True, "density": 0.8},
    "all features": {
        "partial": True, "lengths": True, "density": 0.8, "bias": (1, 2), "with_d_lse": True, "dtype": BF16,
        "head_dim": 40, "value_dim": 24,
    },
} | {
    f"head dim {width}": {"head_dim": width, "num_q": 24, "num_k": 24, "density": 1.0, "dtype": BF16}
    for width in (8, 40, 64, 72, 80, 96, 128)
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_as_good_as_torchs(name: str, make_problem: Callable[..., Any]) -> None:
    make_problem(**CASES[name]).check()


def test_a_head_and_a_column_without_any_pair(make_problem: Callable[..., Any]) -> None:
    problem = make_problem(kv_heads=2)
    mask = torch.ones(1, 2, 3, 4, dtype=torch.bool, device=problem.q.device)
    mask[:, 1] = False
    mask[:, 0, :, 2] = False
    problem.layout = BlockLayout.from_dense(mask, block_q=16, block_k=16, num_q=40, num_k=56)
    problem.pairs = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :40, :56]
    problem.check()
    found = problem.ours()
    assert (found["lse"][:, 1] == -math.inf).all()
    assert (found["dk"][:, 1] == 0).all()
    assert (found["dv"][:, 0, 32:48] == 0).all()


def test_keys_that_a_bias_rules_out(make_problem: Callable[..., Any]) -> None:
    problem = make_problem(bias=(1, 1), density=1.0)
    problem.bias[..., ::3] = -math.inf
    found = problem.ours()
    kept = torch.ones(56, dtype=torch.bool, device=problem.q.device)
    kept[::3] = False
    q, k, v = (x.double() for x in (problem.q, problem.k, problem.v))
    bias = problem.bias[..., kept].double()
    right, lse = reference_attention(q, k[:, :, kept], v[:, :, kept], None, scale=problem.scale, key_bias=bias)
    torch.testing.assert_close(found["out"].double(), right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["lse"].double(), lse, rtol=1e-5, atol=1e-5)
    assert (found["dk"][:, :, ~kept] == 0).all()
    assert (found["d_bias"][..., ~kept] == 0).all()


def test_tokens_outermost_in_memory(make_problem: Callable[..., Any]) -> None:
    """Views of [B, N, 3, H, D], as a fused projection gives them."""
    problem = make_problem(kv_heads=2, num_q=40, num_k=40, head_dim=72)
    packed = torch.stack([problem.q, problem.k, problem.v]).permute(1, 3, 0, 2, 4).contiguous()
    problem.q, problem.k, problem.v = packed.permute(2, 0, 3, 1, 4)
    assert problem.q.stride(2) == 3 * 2 * 72
    problem.check()


@pytest.mark.parametrize("tiles", [(16, 16), (16, 32), (32, 16), (32, 64), (16, 128)])
def test_tiles_that_subdivide_blocks(
    tiles: tuple[int, int], make_problem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a block, and columns of it that take up to four words of a bit mask."""
    rows, turn = tiles
    small = triton_configs.TileConfig(rows, turn, 1, 1)
    monkeypatch.setattr(triton_configs, "table_config", lambda *_: small)
    sizes = {"block_q": 32, "block_k": 64, "num_q": 90, "num_k": 140, "lengths": True}
    if turn > 32:
        sizes = {"block_q": 128, "block_k": 128, "num_q": 200, "num_k": 270}
    problem = make_problem(**sizes, density=1.0, heads=1, partial=True)
    assert (problem.layout.mask_idx >= 0).sum() > 1
    problem.check()


def test_the_same_input_gives_the_same_bits_in_any_order_of_programs(
    make_problem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(heads=4, kv_heads=2, bias=(1, 1), with_d_lse=True, partial=True)
    first = problem.ours()
    if problem.q.device.type == "cpu":
        from triton.runtime import interpreter

        builder = interpreter.interpreter_builder
        place = builder.set_grid_idx
        monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(builder.grid_dim[0] - 1 - x, y, z))
    second = problem.ours()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_sizes_of_zero(make_problem: Callable[..., Any]) -> None:
    problem = make_problem(num_q=16, num_k=16)
    q, d_out = problem.q[:, :, :0], problem.d_out[:, :, :0]
    layout = BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16, device=problem.q.device)
    out, lse = triton_attention.forward(problem.q[:0], problem.k[:0], problem.v[:0], layout, 1.0, None)
    assert out.shape == (0, 2, 16, 32)
    assert lse.shape == (0, 2, 16)
    with pytest.raises(ValueError, match=r"layout.num_q is 16; expected 0"):
        triton_attention.forward(q, problem.k, problem.v, layout, 1.0, None)
    with pytest.raises(ValueError, match="d_out is"):
        triton_attention.backward(d_out, None, problem.q, problem.k, problem.v, problem.q, lse, layout, 1.0, None)
