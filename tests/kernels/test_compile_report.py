"""What the kernels compile to, for two architectures, on a machine without a GPU."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from mezzotint.kernels import triton_configs
from mezzotint.kernels.compile_report import SHARED_LIMIT_BYTES, CompileRow, compile_report, limits
from mezzotint.kernels.layout import BlockLayout

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")

GOOD = CompileRow(
    kernel="attention_forward", arch=90, dtype="bf16", case="D 72, blocks of 128", head_dim=72,
    tile={"TILE_Q": 128, "TILE_K": 64}, num_warps=8, num_stages=3, registers=120, stack_bytes=0, shared_bytes=80_000,
    wgmma=10, mma_sync=0, cp_async=8, useful_over_issued=0.9, ctas_per_sm=2,
)  # fmt: skip
KERNELS = {"forward": "attention_forward", "dq": "attention_backward_dq", "dkdv": "attention_backward_dkdv"}
ATTENTION = set(KERNELS.values())
OTHERS = {
    "attention_row_terms", "transpose_bits", "modulate_forward", "modulate_backward", "modulate_sum", "grouped_product",
    "grouped_weights", "scatter_rows", "scatter_rows_backward",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[CompileRow]:
    """Every entry of the attention kernels' table with all features, and the other kernels."""
    return compile_report()


def is_of(entry: triton_configs.TileConfig, pass_name: str, row: CompileRow) -> bool:
    tile_q, tile_k = (entry.turn, entry.rows) if pass_name == "dkdv" else (entry.rows, entry.turn)
    found = (row.tile["TILE_Q"], row.tile["TILE_K"], row.num_warps, row.num_stages)
    return found == (tile_q, tile_k, entry.num_warps, entry.num_stages)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["HALF_PRECISION", "FULL_PRECISION"])
def test_every_entry_of_the_table_is_compiled_with_all_features(table: str, rows: list[CompileRow]) -> None:
    listed = [row for row in rows if row.kernel in ATTENTION and "all features" in row.case]
    listed = [row for row in listed if (row.dtype == "fp32") == (table == "FULL_PRECISION")]
    for (arch, pass_name), by_width in getattr(triton_configs, table).items():
        for width, entries in by_width.items():
            narrower = max((other for other in by_width if other < width), default=0)
            here = [row for row in listed if row.arch == arch and row.kernel == KERNELS[pass_name]]
            here = [row for row in here if narrower < sum(triton_configs.split_channels(row.head_dim or 0)) <= width]
            for entry in entries:
                assert any(is_of(entry, pass_name, row) for row in here), (table, arch, pass_name, width, entry)


@pytest.mark.slow
def test_the_table_keeps_every_limit(rows: list[CompileRow]) -> None:
    assert limits(rows) == []
    # The same limits, written out apart from `limits`.
    for row in rows:
        assert row.stack_bytes == 0
        assert row.shared_bytes <= {90: 232_448, 80: 166_912}[row.arch]
        if row.kernel in ATTENTION and row.dtype != "fp32":
            assert row.useful_over_issued is not None
            assert row.useful_over_issued >= {64: 1.0, 72: 0.9, 96: 1.0, 128: 1.0, 256: 0.25}[row.head_dim or 0]
        if row.kernel == "attention_forward" and row.arch == 90 and row.head_dim in (64, 72):
            assert row.ctas_per_sm >= 2


@pytest.mark.slow
def test_every_kernel_is_listed_for_each_architecture(rows: list[CompileRow]) -> None:
    for arch in (90, 80):
        assert {row.kernel for row in rows if row.arch == arch} == ATTENTION | OTHERS
    assert any("all features" in row.case for row in rows)


@pytest.mark.slow
def test_each_architecture_gets_its_matrix_instructions_and_asynchronous_copies(rows: list[CompileRow]) -> None:
    for row in rows:
        if row.kernel in ATTENTION and row.dtype != "fp32":
            # wgmma takes four warps and 64 rows.
            wide = row.tile["TILE_K" if row.kernel == KERNELS["dkdv"] else "TILE_Q"] >= 64
            assert (row.wgmma > 0) == (row.arch == 90 and wide)
            assert (row.mma_sync > 0) == (row.arch == 80 or not wide)
            assert (row.cp_async > 0) == (row.num_stages > 1)  # one stage loads nothing ahead


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": SHARED_LIMIT_BYTES[90] + 1}, "232449 bytes of shared memory"),
        ({"useful_over_issued": 0.5625}, "0.562 of its MMA"),
        ({"ctas_per_sm": 1}, "1 CTA an SM"),
    ],
)
def test_a_broken_limit_is_a_sentence(change: dict[str, int], said: str) -> None:
    assert limits([GOOD]) == []
    sentences = limits([GOOD, replace(GOOD, **change)])
    assert len(sentences) == 1
    assert said in sentences[0]
    assert "attention_forward sm_90 bf16 D 72" in sentences[0]


def test_architectures_without_limits_are_refused() -> None:
    from mezzotint.kernels.compile_cases import attention_case

    with pytest.raises(ValueError, match=r"archs has \[75\]; expected some of \[80, 90\]"):
        attention_case("forward", 72, "bf16", 128, archs=(75, 90))


def test_tiles_that_the_device_has_no_room_for_are_refused_by_the_launch() -> None:
    """As on a GPU: under the stand-in driver, with too little shared memory."""
    from mezzotint.kernels.compile_driver import compiling_for
    from mezzotint.kernels.triton_launch import launch_forward

    x = torch.zeros(1, 1, 128, 128, dtype=torch.bfloat16)
    layout = BlockLayout.full(block_q=128, block_k=128, num_q=128, num_k=128)
    with compiling_for(80, shared_limit=40_000), pytest.raises(ValueError, match="expected ones whose tiles fit"):
        launch_forward(x, x, x, layout, 1.0, None)
