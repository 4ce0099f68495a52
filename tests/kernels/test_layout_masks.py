"""Layouts with partly masked blocks, against the mask of token pairs that they were made from."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels import policies
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_masks import pack_bits, unpack_bits

SIZES = {"block_q": 32, "block_k": 16, "num_q": 70, "num_k": 40}  # 3 x 3 blocks, ragged both sides


@st.composite
def token_masks(draw: Any) -> tuple[Tensor, int, int]:
    """Pairs of tokens, some blocks of them all kept and some all left out, with the sizes of the blocks."""
    block_q, block_k = draw(st.sampled_from([(16, 16), (32, 16), (16, 64), (16, 128)]))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 100)), draw(st.integers(1, 200)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    blocks = (*shape[:2], -(-shape[2] // block_q), -(-shape[3] // block_k))
    kind = torch.randint(0, 3, blocks, generator=generator)
    kind = kind.repeat_interleave(block_q, -2).repeat_interleave(block_k, -1)[..., : shape[2], : shape[3]]
    pairs = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.02, 0.5, 0.98]))
    return (kind == 1) | ((kind == 2) & pairs), block_q, block_k


@settings(deadline=None)
@given(token_masks())
def test_every_pair_comes_back_and_is_counted(given_mask: tuple[Tensor, int, int]) -> None:
    pairs, block_q, block_k = given_mask
    layout = BlockLayout.from_token_mask(pairs, block_q=block_q, block_k=block_k)
    assert torch.equal(layout.token_mask(), pairs)
    assert layout.kept_pairs() == int(pairs.sum())
    assert layout.density() == pytest.approx(pairs.double().mean().item())
    assert layout.flops(8, 4) == 2 * (8 + 4) * int(pairs.sum())
    assert layout.keeps_every_pair() == bool(pairs.all())
    if layout.mask_bits is not None and layout.mask_idx is not None:
        assert layout.mask_idx[layout.mask_idx >= 0].unique().tolist() == list(range(len(layout.mask_bits)))
        assert len(layout.mask_bits.unique(dim=0)) == len(layout.mask_bits)


@settings(deadline=None)
@given(token_masks())
def test_the_transpose_names_the_same_mask_of_each_block(given_mask: tuple[Tensor, int, int]) -> None:
    pairs, block_q, block_k = given_mask
    layout = BlockLayout.from_token_mask(pairs, block_q=block_q, block_k=block_k)
    q_num, q_idx = layout.transpose()
    found = layout.transpose_mask_idx()
    if found is None:
        assert layout.mask_idx is None
        return
    assert found is layout.transpose_mask_idx()
    assert (found.dtype, found.shape) == (torch.int32, q_idx.shape)
    blocks = layout.block_map()
    for at in torch.cartesian_prod(*(torch.arange(size) for size in q_num.shape)).tolist():
        b, h, column = at
        count = int(q_num[b, h, column])
        rows = q_idx[b, h, column, :count].long()
        assert found[b, h, column, :count].tolist() == blocks[b, h, rows, column].tolist()
        assert (found[b, h, column, count:] == -1).all()


@settings(deadline=None)
@given(token_masks())
def test_lengths_apply_on_top_of_the_bits(given_mask: tuple[Tensor, int, int]) -> None:
    pairs, block_q, block_k = given_mask
    whole = BlockLayout.from_token_mask(pairs, block_q=block_q, block_k=block_k)
    q_len, k_len = (lengths // 2 for lengths in (whole.q_lengths(), whole.k_lengths()))
    layout = BlockLayout.from_token_mask(pairs, block_q=block_q, block_k=block_k, q_len=q_len, k_len=k_len)
    valid = [
        (torch.arange(tokens) % block < lengths[torch.arange(tokens) // block])
        for tokens, block, lengths in ((pairs.shape[-2], block_q, q_len), (pairs.shape[-1], block_k, k_len))
    ]
    kept = pairs & valid[0][:, None] & valid[1]
    assert torch.equal(layout.token_mask(), kept)
    assert layout.kept_pairs() == int(kept.sum())


def test_bits_lie_as_documented() -> None:
    mask = torch.zeros(1, 1, 32, 128, dtype=torch.bool)
    mask[0, 0, 3, [0, 31, 64 + 5]] = True
    layout = BlockLayout.from_token_mask(mask, block_q=32, block_k=128)
    assert layout.mask_bits is not None
    assert (layout.mask_bits.shape, layout.mask_bits.dtype) == ((1, 32, 4), torch.int32)
    assert layout.mask_bits[0, 3].tolist() == [1 - 2**31, 0, 1 << 5, 0]
    assert not layout.mask_bits[0, [*range(3), *range(4, 32)]].any()


@pytest.mark.parametrize("block_k", [16, 32, 64, 128])
def test_bits_are_packed_and_unpacked(block_k: int) -> None:
    mask = torch.rand(3, 5, block_k) < 0.5
    bits = pack_bits(mask)
    assert torch.equal(unpack_bits(bits, block_k), mask)
    for word in range(bits.shape[-1]):
        for bit in range(min(32, block_k)):
            assert torch.equal(bits[..., word] >> bit & 1, mask[..., 32 * word + bit].int())


def test_equal_blocks_share_a_mask_and_only_mixed_ones_have_any() -> None:
    layout = BlockLayout.from_token_mask(torch.ones(1, 2, 64, 64).tril().bool(), block_q=16, block_k=16)
    assert layout.mask_bits is not None
    assert len(layout.mask_bits) == 1
    assert layout.block_map()[0, 1].tolist() == [[0, -2, -2, -2], [-1, 0, -2, -2], [-1, -1, 0, -2], [-1, -1, -1, 0]]
    every = BlockLayout.from_token_mask(torch.ones(1, 1, 70, 40, dtype=torch.bool), block_q=32, block_k=16)
    assert every.mask_idx is None
    assert every.mask_bits is None
    assert every.keeps_every_pair()


def test_masks_are_held_counted_and_moved() -> None:
    layout = policies.causal(70, block=32)
    assert layout.mask_bits is not None
    assert layout.mask_idx is not None
    assert layout.bytes() == 4 * (3 + 9 + 9 + 32)
    assert layout.to("cpu") is layout
    moved = layout.to("meta")
    for name in ("mask_idx", "mask_bits"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(layout, name).shape


def test_what_follows_a_list_has_no_mask() -> None:
    fields = changed()
    fields["kv_num"][0, 0, 2] = 1
    fields["mask_idx"][0, 0, 2] = torch.tensor([1, 99, -7])
    assert BlockLayout(**fields).mask_idx[0, 0, 2].tolist() == [1, -1, -1]  # type: ignore[index]


def changed(**fields: Any) -> dict[str, Any]:
    """Three full lists whose blocks are whole, and two masks of 16 keys."""
    lists = {
        "kv_num": torch.full((1, 1, 3), 3, dtype=torch.int32),
        "kv_idx": torch.arange(3, dtype=torch.int32).repeat(1, 1, 3, 1),
        "mask_idx": torch.full((1, 1, 3, 3), -1, dtype=torch.int32),
        "mask_bits": torch.full((2, 32, 1), 0xFFFF, dtype=torch.int32),
    }
    return {**SIZES, **lists, **fields}


IDX, BITS = changed()["mask_idx"], changed()["mask_bits"]


def with_entry(tensor: Tensor, at: tuple[int, ...], value: int) -> Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_bits": None}, "mask_bits is None; expected a tensor, since mask_idx is given"),
        ({"mask_idx": None}, "mask_idx is None; expected a tensor, since mask_bits is given"),
        ({"mask_idx": IDX.long()}, "mask_idx has dtype torch.int64; expected torch.int32"),
        ({"mask_idx": IDX[..., :2]}, r"mask_idx has shape \[1, 1, 3, 2\]; expected \[1, 1, 3, 3\]"),
        ({"mask_idx": IDX.to("meta")}, "mask_idx is on meta; expected cpu"),
        ({"mask_bits": BITS.bool()}, "mask_bits has dtype torch.bool; expected torch.int32"),
        ({"mask_bits": BITS[:, :16]}, r"mask_bits has shape \[2, 16, 1\]; expected \[any, 32, 1\]"),
        ({"mask_bits": BITS[:0]}, r"mask_bits has shape \[0, 32, 1\]"),
        ({"mask_bits": BITS.to("meta")}, "mask_bits is on meta; expected cpu"),
        ({"mask_idx": with_entry(IDX, (0, 0, 1, 2), 2)}, r"mask_idx\[0, 0, 1, 2\] is 2; expected -1 to 1, whole or"),
        ({"mask_idx": with_entry(IDX, (0, 0, 1, 2), -2)}, r"mask_idx\[0, 0, 1, 2\] is -2; expected -1 to 1"),
        ({"mask_bits": with_entry(BITS, (1, 7, 0), 1 << 16)}, r"mask_bits\[1, 7, 0\] is 0x10000; expected no bit past"),
        ({"mask_bits": with_entry(BITS, (0, 0, 0), -1)}, r"mask_bits\[0, 0, 0\] is 0xffffffff; expected no bit past"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout(**changed(**fields))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 70, 40), "mask has dtype torch.float32; expected torch.bool"),
        (torch.ones(70, 40, dtype=torch.bool), r"mask has shape \[70, 40\]; expected \[any, any, any, any\]"),
    ],
)
def test_a_mask_of_pairs_that_does_not_fit_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_token_mask(mask, block_q=32, block_k=16)
