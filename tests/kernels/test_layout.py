"""Random layouts against loops over single blocks and single tokens, their conversions, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout

SIZES = {"block_q": 32, "block_k": 16, "num_q": 70, "num_k": 40}  # 3 x 3 blocks, ragged both sides


@st.composite
def layouts(draw: Any, *, lengths: bool = True) -> BlockLayout:
    block_q, block_k = draw(st.sampled_from([(16, 16), (32, 16), (16, 64)]))
    num_q, num_k = draw(st.integers(1, 100)), draw(st.integers(1, 100))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), -(-num_q // block_q), -(-num_k // block_k))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    q_len = k_len = None
    if lengths and draw(st.booleans()):
        q_len = some_lengths(num_q, block_q, generator)
        k_len = some_lengths(num_k, block_k, generator)
    sizes = {"block_q": block_q, "block_k": block_k, "num_q": num_q, "num_k": num_k}
    return BlockLayout.from_dense(mask, **sizes, q_len=q_len, k_len=k_len)


def some_lengths(num_tokens: int, block: int, generator: torch.Generator) -> Tensor:
    whole = [min(block, num_tokens - start) for start in range(0, num_tokens, block)]
    return torch.tensor([int(torch.randint(0, n + 1, (), generator=generator)) for n in whole], dtype=torch.int32)


def listed_pairs(layout: BlockLayout) -> Tensor:
    """The token mask written by a loop over every list, straight from the definition."""
    batch, heads, rows = layout.kv_num.shape
    tokens = torch.zeros((batch, heads, layout.num_q, layout.num_k), dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for row in range(rows):
                top = row * layout.block_q
                height = layout.block_q if layout.q_len is None else int(layout.q_len[row])
                for slot in range(int(layout.kv_num[b, h, row])):
                    column = int(layout.kv_idx[b, h, row, slot])
                    left = column * layout.block_k
                    width = layout.block_k if layout.k_len is None else int(layout.k_len[column])
                    tokens[b, h, top : top + height, left : left + width] = True
    return tokens


@settings(deadline=None)
@given(layouts())
def test_dense_mask_survives_the_round_trip(layout: BlockLayout) -> None:
    dense = layout.to_dense()
    again = BlockLayout.from_dense(
        dense, block_q=layout.block_q, block_k=layout.block_k, num_q=layout.num_q, num_k=layout.num_k
    )
    assert torch.equal(again.to_dense(), dense)
    assert torch.equal(again.kv_num, layout.kv_num)
    assert torch.equal(again.kv_idx, layout.kv_idx)


def test_lists_are_those_of_a_mask_written_out() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)[None, None]
    layout = BlockLayout.from_dense(mask, **SIZES)
    assert layout.kv_num.tolist() == [[[2, 0, 1]]]
    assert layout.kv_idx.tolist() == [[[[0, 2], [0, 0], [1, 0]]]]
    assert layout.kv_num.dtype == layout.kv_idx.dtype == torch.int32
    assert (layout.num_q_blocks, layout.num_k_blocks) == (3, 3)
    assert layout.q_lengths().tolist() == [32, 32, 6]
    assert layout.k_lengths().tolist() == [16, 16, 8]


@settings(deadline=None)
@given(layouts())
def test_token_mask_follows_the_definition(layout: BlockLayout) -> None:
    assert torch.equal(layout.token_mask(), listed_pairs(layout))


@settings(deadline=None)
@given(layouts())
def test_compressed_rows_survive_the_round_trip(layout: BlockLayout) -> None:
    row_ptr, col_idx = layout.to_csr()
    batch, heads, _ = layout.kv_num.shape
    assert row_ptr.diff().tolist() == layout.kv_num.flatten().tolist()
    assert col_idx.tolist() == layout.to_dense().nonzero()[:, -1].tolist()
    sizes = {"block_q": layout.block_q, "block_k": layout.block_k, "num_q": layout.num_q, "num_k": layout.num_k}
    again = BlockLayout.from_csr(row_ptr, col_idx, batch=batch, heads=heads, **sizes)
    assert torch.equal(again.kv_num, layout.kv_num)
    assert torch.equal(again.kv_idx, layout.kv_idx)


@settings(deadline=None)
@given(layouts())
def test_transpose_is_the_dense_transpose_sorted(layout: BlockLayout) -> None:
    q_num, q_idx = layout.transpose()
    columns = layout.to_dense().transpose(-1, -2)
    assert q_num.dtype == q_idx.dtype == torch.int32
    assert torch.equal(q_num, columns.sum(-1).int())
    for at in torch.cartesian_prod(*(torch.arange(size) for size in q_num.shape)).tolist():
        row, count = columns[tuple(at)], int(q_num[tuple(at)])
        assert q_idx[tuple(at)][:count].tolist() == row.nonzero().flatten().tolist()
        assert not q_idx[tuple(at)][count:].any()
    assert layout.transpose() is layout.transpose()


@settings(deadline=None)
@given(layouts())
def test_density_and_flops_count_valid_token_pairs(layout: BlockLayout) -> None:
    pairs = int(listed_pairs(layout).sum())
    batch, heads, _ = layout.kv_num.shape
    valid = int(layout.q_lengths().sum()) * int(layout.k_lengths().sum()) * batch * heads
    assert layout.kept_pairs() == pairs
    assert layout.density() == pytest.approx(pairs / valid if valid else 0.0)
    assert layout.flops(72) == 4 * 72 * pairs
    assert layout.flops(72, value_dim=40) == 2 * (72 + 40) * pairs
    shared = 5 if heads == 1 else heads
    assert layout.flops(8, heads=shared) == 32 * pairs * (5 if heads == 1 else 1)


def test_density_is_the_dense_mean_where_all_blocks_are_whole() -> None:
    mask = torch.rand(2, 4, 6, 8, generator=torch.Generator().manual_seed(3)) < 0.4
    layout = BlockLayout.from_dense(mask, block_q=32, block_k=16, num_q=6 * 32, num_k=8 * 16)
    assert layout.density() == pytest.approx(mask.float().mean().item())


def test_full_layout_keeps_every_pair() -> None:
    layout = BlockLayout.full(**SIZES)
    assert layout.token_mask().all()
    assert layout.density() == 1.0
    assert layout.flops(16, heads=3, batch=2) == 4 * 16 * 70 * 40 * 6


def test_bytes_are_those_of_the_tensors_held() -> None:
    layout = BlockLayout.full(**SIZES)
    assert layout.bytes() == 4 * 3 + 4 * 9
    layout.transpose()
    assert layout.bytes() == 4 * 3 + 4 * 9


def test_moving_to_the_same_device_is_free_and_to_another_moves_all() -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    layout = BlockLayout.from_dense(
        torch.ones(1, 1, 2, 2, dtype=torch.bool), block_q=16, block_k=16, num_q=32, num_k=32,
        q_len=torch.tensor([16, 3], dtype=torch.int32), perm=order, inv_perm=order.argsort(),
    )  # fmt: skip
    assert layout.to("cpu") is layout
    moved = layout.to("meta")
    for name in ("kv_num", "kv_idx", "q_len", "perm", "inv_perm"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(layout, name).shape


def test_tokens_are_arranged_and_restored() -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    layout = BlockLayout.from_dense(
        mask, block_q=16, block_k=16, num_q=32, num_k=32, perm=order, inv_perm=order.argsort()
    )
    x = torch.randn(2, 3, 32, 4)
    assert torch.equal(layout.arrange(x)[..., 5, :], x[..., int(order[5]), :])
    assert torch.equal(layout.restore(layout.arrange(x)), x)


def lists(idx: list[int], num: int) -> dict[str, Any]:
    """Lists of three rows, the last of them as given."""
    rows = [[0, 1, 2], [0, 1, 2], idx]
    return {
        "kv_num": torch.tensor([[[3, 3, num]]], dtype=torch.int32),
        "kv_idx": torch.tensor([[rows]], dtype=torch.int32),
    }


def changed(**fields: Any) -> dict[str, Any]:
    return {**SIZES, **lists([0, 1, 2], 3), **fields}


ORDER = torch.arange(64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (changed(**lists([0, 2, 1], 3)), r"kv_idx\[0, 0, 2\] is not sorted: 1 follows 2"),
        (changed(**lists([0, 1, 1], 3)), r"kv_idx\[0, 0, 2\] repeats its neighbour: 1 follows 1"),
        (changed(**lists([0, 1, 3], 3)), r"kv_idx\[0, 0, 2, 2\] is 3; expected 0 to 2"),
        (changed(**lists([-1, 1, 2], 3)), r"kv_idx\[0, 0, 2, 0\] is -1; expected 0 to 2"),
        (changed(**lists([0, 1, 2], 4)), r"kv_num\[0, 0, 2\] is 4; expected 0 to 3"),
        (changed(**lists([0, 1, 2], -1)), r"kv_num\[0, 0, 2\] is -1; expected 0 to 3"),
        (changed(block_q=48), r"block_q is 48; expected one of"),
        (changed(block_k=8), r"block_k is 8; expected one of"),
        (changed(num_q=0), r"num_q is 0; expected a number of tokens"),
        (changed(num_k=2.5), r"num_k is 2.5; expected a number of tokens"),
        (changed(num_q=100), r"kv_num has shape \[1, 1, 3\]; expected \[any, any, 4\]"),
        (changed(kv_num=torch.ones(1, 1, 3)), r"kv_num has dtype torch.float32; expected torch.int32"),
        (changed(kv_num=[1, 2, 3]), r"kv_num is a list; expected a tensor"),
        (changed(kv_idx=torch.zeros(1, 1, 2, 3, dtype=torch.int32)), r"kv_idx has shape \[1, 1, 2, 3\]"),
        (changed(kv_idx=torch.zeros(1, 1, 3, 0, dtype=torch.int32)), r"kv_idx has shape \[1, 1, 3, 0\]"),
        (changed(kv_idx=torch.zeros(1, 1, 3, 3, dtype=torch.int32, device="meta")), r"kv_idx is on meta; expected cpu"),
        (changed(q_len=torch.ones(2, dtype=torch.int32)), r"q_len has shape \[2\]; expected \[3\]"),
        (changed(q_len=torch.ones(3)), r"q_len has dtype torch.float32"),
        (changed(q_len=torch.tensor([32, 32, 7], dtype=torch.int32)), r"q_len\[2\] is 7; expected 0 to 6"),
        (changed(k_len=torch.tensor([-1, 16, 8], dtype=torch.int32)), r"k_len\[0\] is -1; expected 0 to 16"),
        (changed(perm=ORDER[:40], inv_perm=ORDER[:40]), r"num_k is 40; expected 70"),
        (changed(num_k=70, block_k=32, perm=ORDER), r"perm has shape \[64\]; expected \[70\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout(**fields)


def test_a_token_order_that_does_not_lead_back_is_refused() -> None:
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    sizes = {"block_q": 16, "block_k": 16, "num_q": 32, "num_k": 32}
    order = torch.arange(32)
    with pytest.raises(ValueError, match=r"perm\[inv_perm\[0\]\] is 31; expected 0"):
        BlockLayout.from_dense(mask, **sizes, perm=order, inv_perm=order.flip(0))
    with pytest.raises(ValueError, match=r"perm\[31\] is 32; expected 0 to 31"):
        BlockLayout.from_dense(mask, **sizes, perm=torch.cat([order[:31], torch.tensor([32])]), inv_perm=order)
    with pytest.raises(ValueError, match="inv_perm is a NoneType"):
        BlockLayout.from_dense(mask, **sizes, perm=order)


def test_what_follows_a_list_is_set_to_zero() -> None:
    layout = BlockLayout(**changed(**lists([1, 77, -5], 1)))
    assert layout.kv_idx[0, 0, 2].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 3, 3), "mask has dtype torch.float32; expected torch.bool"),
        (torch.ones(1, 1, 3, 4, dtype=torch.bool), r"mask has shape \[1, 1, 3, 4\]; expected \[any, any, 3, 3\]"),
        (torch.ones(3, 3, dtype=torch.bool), r"mask has shape \[3, 3\]"),
    ],
)
def test_a_dense_mask_that_does_not_fit_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_dense(mask, **SIZES)


@pytest.mark.parametrize(
    ("row_ptr", "col_idx", "message"),
    [
        ([0, 1, 2], [0, 1], "row_ptr has 3 entries; expected 4"),
        ([0, 2, 1, 3], [0, 1, 2], "its least step is -1"),
        ([0, 1, 2, 4], [0, 1, 2], "row_ptr runs from 0 to 4"),
        ([0, 1, 2, 3], [0, 1, 3], r"col_idx\[2\] is 3; expected 0 to 2"),
        ([0, 0, 0, 2], [1, 0], r"kv_idx\[0, 0, 2\] is not sorted"),
    ],
)
def test_compressed_rows_that_do_not_fit_are_refused(row_ptr: list[int], col_idx: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_csr(torch.tensor(row_ptr), torch.tensor(col_idx), **SIZES)


def test_flops_refuse_a_number_of_heads_that_is_not_the_layouts() -> None:
    layout = BlockLayout.from_dense(torch.ones(1, 2, 3, 3, dtype=torch.bool), **SIZES)
    with pytest.raises(ValueError, match="heads is 3; expected 1 or 2"):
        layout.flops(16, heads=3)
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        layout.flops(16, batch=0)
