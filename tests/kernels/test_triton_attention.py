"""The Triton backend without a GPU: its table of configurations, the choice of one, its arguments, what it refuses."""

import importlib.util
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.kernels import triton_attention, triton_configs, triton_tuning
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.triton_arguments import aligned
from mezzotint.kernels.triton_configs import KernelShape, TileConfig, split_channels

BLOCKS = (16, 32, 64, 128)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")


def test_importing_the_package_needs_no_triton() -> None:
    script = "import sys; sys.modules['triton'] = None; import mezzotint.kernels, mezzotint.kernels.triton_attention"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def small() -> tuple[torch.Tensor, BlockLayout]:
    return torch.zeros(1, 1, 16, 32), BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16)


def test_without_triton_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x, layout = small()
    with pytest.raises(ValueError, match="need the package 'triton'"):
        triton_attention.forward(x, x, x, layout, 1.0, None)


@needs_triton
def test_tensors_on_the_cpu_are_refused() -> None:
    x, layout = small()
    with pytest.raises(ValueError, match="q is on cpu; expected a CUDA device"):
        triton_attention.forward(x, x, x, layout, 1.0, None)
    with pytest.raises(ValueError, match="q is on cpu; expected a CUDA device"):
        triton_attention.backward(x, None, x, x, x, x, x[..., 0], layout, 1.0, None)


@pytest.mark.parametrize(
    ("width", "parts"),
    [(1, (16, 0)), (16, (16, 0)), (32, (32, 0)), (40, (32, 16)), (64, (64, 0)), (72, (64, 16)), (80, (64, 16)),
     (96, (64, 32)), (120, (128, 0)), (128, (128, 0)), (144, (128, 64)), (192, (128, 64)), (256, (256, 0))],
)  # fmt: skip
def test_head_dims_are_split_and_not_padded(width: int, parts: tuple[int, int]) -> None:
    assert split_channels(width) == parts


@given(st.integers(1, 256))
def test_a_split_covers_the_head_with_powers_of_two(width: int) -> None:
    first, second = split_channels(width)
    assert first + second >= width
    assert first + second - width < max(16, first)
    for part in (first, second):
        assert part & (part - 1) == 0
        assert part == 0 or part >= 16


@pytest.mark.parametrize("width", [0, -1, 257])
def test_head_dims_out_of_range_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"head dim is {width}; expected 1 to 256"):
        split_channels(width)


@given(
    st.sampled_from(triton_configs.PASSES),
    st.sampled_from([80, 90]),
    st.sampled_from([2, 4]),
    st.integers(1, 256),
    st.sampled_from(BLOCKS),
    st.sampled_from(BLOCKS),
)
def test_every_configuration_divides_the_blocks(
    pass_name: str, arch: int, itemsize: int, width: int, block_q: int, block_k: int
) -> None:
    shape = KernelShape(head_dim=width, value_dim=width, block_q=block_q, block_k=block_k, itemsize=itemsize)
    choices = triton_configs.candidates(pass_name, arch, shape)
    assert choices[0] == triton_configs.table_config(pass_name, arch, shape)
    assert len(set(choices)) == len(choices)
    for config in choices:
        constants = shape.constants(pass_name, config)
        assert block_q % constants["TILE_Q"] == 0
        assert block_k % constants["TILE_K"] == 0
        assert min(config.rows, config.turn) >= 16
        assert config.num_warps in (1, 2, 4, 8)
        assert 1 <= config.num_stages <= 4


def test_devices_before_ampere_are_refused() -> None:
    assert [triton_configs.table_arch(arch) for arch in (80, 89, 90, 120)] == [80, 80, 90, 80]
    with pytest.raises(ValueError, match=r"compute capability is 7\.5; expected 8\.0"):
        triton_configs.table_arch(75)


@needs_triton
def test_what_spills_or_does_not_fit_is_never_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    def run(config: TileConfig) -> SimpleNamespace:
        if config.turn == 128:
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return SimpleNamespace(n_spills=2 if config.turn == 64 else 0)

    monkeypatch.setattr(triton.testing, "do_bench", lambda call, **_: (call(), 3.0)[1])
    configs = [TileConfig(64, turn, 4, 2) for turn in (128, 64, 32)]
    assert [triton_tuning.time_ms(run, config) for config in configs] == [math.inf, math.inf, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_that_do_not_step_by_16_bytes_are_copied_and_others_are_not(dtype: torch.dtype) -> None:
    unit = 16 // torch.empty(0, dtype=dtype).element_size()
    whole = torch.randn(2, 3, 10, 9 * unit).to(dtype)
    views = (whole[:, :, 1:], whole[..., : 4 * unit + 1], whole.transpose(1, 2), whole[:, :1].expand(2, 5, -1, -1))
    for x in (whole, *views):
        assert aligned(x) is x
    for x in (whole[..., 1:], whole[..., : unit + 1].contiguous(), whole.transpose(-1, -2)):
        copy = aligned(x)
        assert torch.equal(copy, x)
        assert copy.data_ptr() % 16 == 0
        assert copy.stride(-1) == 1
        assert all(stride % unit == 0 for stride in copy.stride()[:-1])
