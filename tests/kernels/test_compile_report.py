"""What the kernels compile to, for two architectures, on a machine without a GPU."""

import importlib.util
from dataclasses import replace

import pytest

from mezzotint.kernels.compile_report import SHARED_LIMIT_BYTES, CompileRow, compile_report, limits
from mezzotint.kernels.triton_configs import TileConfig

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")

GOOD = CompileRow(
    kernel="forward", arch=90, head_dim=72, dtype="bf16", block=128, config=TileConfig(128, 64, 8, 3), registers=120,
    stack_bytes=0, shared_bytes=80_000, wgmma=10, mma_sync=0, cp_async=8, useful_over_issued=0.9, ctas_per_sm=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[CompileRow]:
    """Every kernel of the table that the issue sets limits for, compiled."""
    return compile_report()


@pytest.mark.slow
def test_the_table_keeps_every_limit(rows: list[CompileRow]) -> None:
    assert len(rows) == 3 * 2 * 3
    assert limits(rows) == []
    # The same limits, written out apart from `limits`.
    for row in rows:
        assert row.stack_bytes == 0
        assert row.shared_bytes <= {90: 232_448, 80: 166_912}[row.arch]
        assert row.useful_over_issued is not None
        assert row.useful_over_issued >= (0.9 if row.head_dim == 72 else 1.0)
        if row.kernel == "forward" and row.arch == 90 and row.head_dim <= 72:
            assert row.ctas_per_sm >= 2


@pytest.mark.slow
def test_each_architecture_gets_its_matrix_instructions_and_asynchronous_copies(rows: list[CompileRow]) -> None:
    for row in rows:
        assert (row.wgmma > 0) == (row.arch == 90)
        assert (row.mma_sync > 0) == (row.arch == 80)
        assert row.cp_async > 0


@pytest.mark.slow
def test_small_blocks_do_not_spill_either() -> None:
    rows = compile_report(head_dims=(72,), blocks=(64, 16))
    assert [row.stack_bytes for row in rows] == [0] * len(rows)


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
    assert "forward sm_90 bf16 D 72" in sentences[0]


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"archs has \[75\]"):
        compile_report(archs=(75,))
    with pytest.raises(ValueError, match="kernels has"):
        compile_report(kernels=("sideways",))
