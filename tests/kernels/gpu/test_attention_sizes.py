"""The Triton kernels of attention at real sizes, and the choice of their configurations: on a GPU only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from mezzotint.kernels import triton_configs, triton_tuning

pytestmark = pytest.mark.usefixtures("cuda")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 72, 128, 256])
@pytest.mark.parametrize("block", [16, 64, 128])
def test_real_sizes(
    make_problem: Callable[..., Any], dtype: torch.dtype, width: int, block: int, features: bool
) -> None:
    """values and gradients at 1,000 x 1,224 tokens, head dims 64 to 256, with and without all features"""
    every = {"layout_batch": 2, "layout_heads": 4, "bias": (1, 4), "with_d_lse": True, "lengths": True, "partial": True}
    make_problem(
        batch=2, heads=4, kv_heads=2, num_q=1000, num_k=1224, head_dim=width, block_q=block, block_k=block, dtype=dtype,
        **(every if features else {}),
    ).check()  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_dense_layouts_agree_with_torchs_attention(make_problem: Callable[..., Any], dtype: torch.dtype) -> None:
    """errors beside those of torch's own attention on the device, 1,024 tokens"""
    problem = make_problem(
        heads=8, kv_heads=8, num_q=1024, num_k=1024, head_dim=72, block_q=64, block_k=64, dtype=dtype, density=1.0
    )
    leaves = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    wanted = [out, *torch.autograd.grad(out, leaves, problem.d_out)]
    found, exact = problem.ours(), problem.explicit(torch.float64)
    for name, theirs in zip(("out", "dq", "dk", "dv"), wanted, strict=True):
        factor = 2 if name == "out" else 3
        error, reference = ((x.double() - exact[name]).abs().max() for x in (found[name], theirs))
        assert error <= factor * reference, name


@pytest.mark.parametrize("pass_name", triton_configs.PASSES)
def test_every_candidate_of_autotuning_is_right(
    pass_name: str, make_problem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """values and gradients with each configuration that autotuning may choose"""
    problem = make_problem(num_q=500, num_k=600, head_dim=72, block_q=128, block_k=128, dtype=torch.bfloat16)
    chosen, (major, minor) = triton_configs.table_config, torch.cuda.get_device_capability()
    arch = triton_configs.table_arch(10 * major + minor)
    shape = triton_configs.KernelShape(head_dim=72, value_dim=72, block_q=128, block_k=128)
    refused: dict[triton_configs.TileConfig, str] = {}
    for one in triton_configs.candidates(pass_name, arch, shape):
        pick = partial(lambda one, name, *rest: one if name == pass_name else chosen(name, *rest), one)
        monkeypatch.setattr(triton_configs, "table_config", pick)
        try:
            problem.check()
        except ValueError as error:  # a candidate may be too large for this device; the table's entry may not
            refused[one] = str(error)
    assert chosen(pass_name, arch, shape) not in refused
    assert all("fit the device" in text for text in refused.values())


def test_autotuning_keeps_one_choice_for_each_pass(
    make_problem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """autotuning itself: one choice is timed and kept for each pass"""
    monkeypatch.setenv(triton_tuning.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(triton_tuning, "_FASTEST", {})
    make_problem(
        heads=4, num_q=512, num_k=512, head_dim=64, block_q=64, block_k=64, dtype=torch.bfloat16
    ).check()
    assert {key[0] for key in triton_tuning._FASTEST} == set(triton_configs.PASSES)
