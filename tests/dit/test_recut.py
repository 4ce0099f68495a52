"""Cutting a dense network into segments: where each tensor comes from, and how the cut network starts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.dit.blocks import ModulatedBlock
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.latent_network import LatentNetwork
from mezzotint.dit.pixart import PixArt
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import LAYOUTS, SegmentLayout
from mezzotint.dit.video_dit import VideoDiT

C = 24
SMALL = {"sample_size": 16, "hidden_size": C, "num_heads": 2}
LAYOUT = SegmentLayout.parse("1 + 2x[1,2,1,1] + 1")
ATTENTION = {
    "pool": {"v": slice(2 * C, 3 * C)},
    "generation": {"q": slice(0, C), "kv": slice(C, 3 * C)},
    "recovery": {"q": slice(0, C), "kv": slice(C, 3 * C)},
    "sparse": {"qkv": slice(0, 3 * C)},
    "dense": {"qkv": slice(0, 3 * C)},
}


def dense(kind: str) -> LatentNetwork:
    torch.manual_seed(0)
    if kind == "class":
        made: LatentNetwork = ClassDiT(**SMALL, num_layers=12, num_classes=7)
    elif kind == "class, a condition a block":
        made = ClassDiT(**SMALL, num_layers=12, num_classes=7, condition_per_block=True, frequency_shift=1)
    elif kind == "video":
        made = VideoDiT(**SMALL, num_layers=24, num_frames=3)
    else:
        made = PixArt(**SMALL, num_layers=12, text_size=10)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def expected_state(source: LatentNetwork, cut: LatentNetwork) -> dict[str, Tensor]:
    """Written out from the roles, apart from the code under test."""
    state = source.state_dict()
    expected = {name: tensor for name, tensor in state.items() if ".attn.qkv." not in name}
    places = {place: block.role for place, block in cut.named_modules() if isinstance(block, ModulatedBlock)}
    for place, role in places.items():
        for part in ("weight", "bias"):
            for name, rows in ATTENTION[role].items():
                expected[f"{place}.attn.{name}.{part}"] = state[f"{place}.attn.qkv.{part}"][rows]
        if role == "recovery":
            expected[f"{place}.merge.from_sparse.weight"] = torch.zeros(C, C)
            expected[f"{place}.merge.from_dense.weight"] = torch.eye(C)
            expected |= {f"{place}.merge.from_{side}.bias": torch.zeros(C) for side in ("sparse", "dense")}
    return expected


@pytest.mark.parametrize("kind", ["class", "class, a condition a block", "video", "pixart"])
def test_every_tensor_is_a_slice_of_the_source_or_a_constant(kind: str) -> None:
    source = dense(kind)
    cut = recut(source, LAYOUT)
    expected = expected_state(source, cut)
    state = cut.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert cut.config.segments == str(LAYOUT)
    assert type(cut) is type(source)


def test_the_cut_network_shares_no_memory_with_its_source() -> None:
    source = dense("class")
    cut = recut(source, LAYOUT)
    held = {t.untyped_storage().data_ptr() for t in source.state_dict().values()}
    assert not held & {t.untyped_storage().data_ptr() for t in cut.state_dict().values()}
    storages = [t.untyped_storage().data_ptr() for t in cut.state_dict().values()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("kind", ["class", "video", "pixart"])
@torch.no_grad()
def test_merged_tokens_start_as_the_dense_tokens_that_entered(kind: str) -> None:
    cut = recut(dense(kind), LAYOUT)
    merges: list[tuple[Tensor, Tensor]] = []
    for module in cut.modules():
        if isinstance(module, ModulatedBlock) and module.merge is not None:
            module.merge.register_forward_hook(lambda _, given, out: merges.append((given[1], out)))
    frames = (3,) if kind == "video" else ()
    rest: dict[str, Any] = {"class": (torch.tensor([3, 7]),), "pixart": (torch.randn(2, 5, 10),)}
    cut(torch.randn(2, *frames, 4, 16, 12), torch.tensor([37, 812]), *rest.get(kind, ()), grid=(3, 4))
    assert len(merges) == 2
    assert all(torch.equal(entered, merged) for entered, merged in merges)


def test_the_dtype_and_the_mode_stay() -> None:
    cut = recut(dense("class").bfloat16(), LAYOUT)
    assert {p.dtype for p in cut.parameters()} == {torch.bfloat16}
    assert not cut.training
    assert recut(dense("class").train(), LAYOUT).training


@pytest.mark.parametrize(
    ("sample_size", "preset", "count"),
    [(32, None, 675_129_632), (32, "dit-xl-256", 683_099_168), (64, "dit-xl-512", 681_327_392)],
)
def test_the_published_parameter_counts_come_out(sample_size: int, preset: str | None, count: int) -> None:
    with torch.device("meta"):
        network = ClassDiT(sample_size=sample_size)
        network = recut(network, LAYOUTS[preset].layout) if preset else network
    assert sum(p.numel() for p in network.parameters()) == count


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="adds up to 7 blocks, and there are 12"):
        recut(dense("class"), SegmentLayout.parse("1 + 1x[1,2,1,1] + 1"))
    with pytest.raises(ValueError, match="only a dense one can be cut"):
        recut(recut(dense("class"), LAYOUT), LAYOUT)
