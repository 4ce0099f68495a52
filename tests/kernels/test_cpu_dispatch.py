"""Which kernel dense attention on a CPU runs in: the table of measured thresholds decides, and a sparse layout has no
choice."""

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import BlockLayout, cpu_dispatch
from mezzotint.kernels.attention_backends import chosen_backend
from mezzotint.kernels.native_build import why_not_native


def sequence(tokens: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.zeros(1, 16, tokens, 64, dtype=dtype, requires_grad=grad)


@pytest.fixture(params=["avx512bf16", "avx512"])
def _wide_vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not_native():
        pytest.skip(f"the C kernels cannot be built here: {reason}")
    monkeypatch.setattr(cpu_dispatch, "instruction_set", lambda: request.param)


@pytest.mark.usefixtures("_wide_vectors")
def test_dense_attention_goes_where_it_was_measured_to_be_faster() -> None:
    def chosen(tokens: int, dtype: torch.dtype, grad: bool) -> str:
        x = sequence(tokens, dtype, grad)
        return chosen_backend(x, x, x, BlockLayout.full(block_q=64, block_k=64, num_q=tokens, num_k=tokens))

    assert chosen(64, torch.float32, grad=True) == "sdpa"
    assert chosen(64, torch.float32, grad=False) == "cpu"
    assert chosen(128, torch.float32, grad=True) == "cpu"
    assert chosen(64, torch.bfloat16, grad=True) == "cpu"
    with torch.no_grad():
        assert chosen(64, torch.float32, grad=True) == "cpu"


@pytest.mark.usefixtures("_wide_vectors")
def test_a_sparse_layout_always_runs_in_the_c_kernels() -> None:
    x = sequence(64, torch.float32, grad=True)
    half = torch.tensor([[[[True, False], [True, True]]]])
    layout = BlockLayout.from_dense(half, block_q=32, block_k=32, num_q=64, num_k=64)
    assert chosen_backend(x, x, x, layout) == "cpu"


def test_what_is_not_in_the_table_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sequence(1024, torch.float32)
    monkeypatch.setattr(cpu_dispatch, "native_library", lambda: object())
    monkeypatch.setattr(cpu_dispatch, "instruction_set", lambda: "generic")
    assert not cpu_dispatch.prefers_native(x, x, needs_grad=False)
    monkeypatch.setattr(cpu_dispatch, "instruction_set", lambda: "avx512")
    assert cpu_dispatch.prefers_native(x, x, needs_grad=False)
    assert not cpu_dispatch.prefers_native(x.half(), x.half(), needs_grad=False)
    monkeypatch.setattr(cpu_dispatch, "native_library", lambda: None)
    assert not cpu_dispatch.prefers_native(x, x, needs_grad=False)
