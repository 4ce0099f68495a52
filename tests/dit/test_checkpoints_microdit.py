"""Original checkpoints of MicroDiT: their outputs, the way back, what does not fit, and what a file tells."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.dit.checkpoints import from_original
from mezzotint.dit.checkpoints.guess import guess_original
from mezzotint.dit.checkpoints.microdit import entries, to_microdit
from mezzotint.dit.checkpoints.sources import load_pretrained
from mezzotint.dit.micro_config import PRESETS, MicroDiTConfig
from mezzotint.dit.microdit import MicroDiT

FILE = Path(__file__).resolve().parents[1] / "data" / "reference" / "microdit.safetensors"
HEADS = 4


def fixture() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Configuration, state dict, inputs and outputs."""
    with safe_open(FILE, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}
    return config, state, {key: t for key, t in tensors.items() if not key.startswith("param.")}


def assert_equal_to(out: Tensor, reference: Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert out.shape == reference.shape
    assert ((out - reference).abs().max() / reference.abs().max()).item() < 1e-5


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_outputs_are_the_originals(training: bool) -> None:
    config, state, given = fixture()
    module = from_original("microdit", config, state).train(training)
    x, t, y, keep = (given[f"in.{name}"] for name in ("x", "t", "y", "ids_keep75"))
    assert_equal_to(module(x, t, y), given["out.full"])
    assert_equal_to(module(x, t, y, keep=keep), given["out.masked75"])
    assert_equal_to(module(x, t, y, guidance_scale=5.0), given["out.cfg5"])


@torch.no_grad()
def test_masked_patches_are_the_mask_token() -> None:
    config, state, given = fixture()
    state["mask_token"] = torch.arange(16.0).view(1, 1, 16)
    module = from_original("microdit", config, state)
    out = module(given["in.x"], given["in.t"], given["in.y"], keep=given["in.ids_keep75"])
    patches = out.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(2, 64, 16)
    dropped = given["out.mask75"].bool()
    assert dropped.sum() == 2 * 48
    assert torch.equal(patches[dropped], torch.arange(16.0).expand(96, 16))


def test_the_way_back_keeps_every_bit() -> None:
    config, state, _ = fixture()
    written = to_microdit(from_original("microdit", config, state))
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())


def test_the_dtype_of_the_checkpoint_stays() -> None:
    config, state, given = fixture()
    module = from_original("microdit", config, {key: t.bfloat16() for key, t in state.items()})
    assert {p.dtype for p in [*module.parameters(), *module.buffers()]} == {torch.bfloat16}
    assert module(given["in.x"], given["in.t"], given["in.y"]).dtype == torch.bfloat16


def test_missing_extra_and_misshapen_keys_are_named_together() -> None:
    config, state, _ = fixture()
    del state["blocks.1.mlp.w2"]
    state["blocks.1.mlp.w2.weight"] = torch.zeros(1)
    state["mask_token"] = torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match=re.escape(
        "the checkpoint does not fit its configuration: missing: blocks.1.mlp.w2; not expected: "
        "blocks.1.mlp.w2.weight; misshapen: mask_token is [1, 1, 8] and not [1, 1, 16]."
    )):
        from_original("microdit", config, state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"windows": 3}, "config has windows; for microdit it must have only the settings input_size,"),
        ({"use_bias": True}, "use_bias is True; it must be False"),
        ({"qkv_multipliers": [1.0, 1.0, 1.0]}, "qkv_multipliers has 3 numbers; their count must divide depth, 4"),
        ({"expert_capacity": 9}, "expert_capacity is 9; it must be at most num_experts, 4"),
        ({"dim": 66}, "hidden_size is 66; it must be a multiple of 4"),
        ({"head_dim": 12}, "hidden_size is 64; it must be a multiple of head_dim 12"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    config, state, _ = fixture()
    with pytest.raises(ValueError, match=named):
        from_original("microdit", config | change, state)


def test_fewer_multipliers_than_layers_stand_for_parts_of_the_depth() -> None:
    config, state, _ = fixture()
    settings = config | {"depth": 4, "qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.proj\.weight is \[64, 64\] and not \[64, 32\]"):
        from_original("microdit", settings, state)


@pytest.mark.parametrize(
    ("name", "channels", "parameters", "tensors"),
    [
        ("micro-xl-2", 4, 1_165_442_320, 478), ("micro-xl-2", 16, 1_165_540_672, 478),
        ("micro-tiny-2", 4, 200_692_752, 290),
    ],
)
def test_a_preset_has_the_published_parameters_and_tensors(
    name: str, channels: int, parameters: int, tensors: int
) -> None:
    shape = MicroDiTConfig(**asdict(PRESETS[name]) | {"in_channels": channels})
    with torch.device("meta"):
        network = MicroDiT(**asdict(shape))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len({theirs for entry in entries(shape) for theirs in entry.theirs}) == tensors
    assert len(network.state_dict()) == tensors


@pytest.mark.parametrize("name", PRESETS)
def test_experts_are_where_they_were_published(name: str) -> None:
    shape = PRESETS[name]
    blocks, mixer = {"micro-xl-2": (range(1, 27, 2), [1, 3, 5]), "micro-tiny-2": (range(1, 15, 2), [1, 3])}[name]
    assert [i for i, block in enumerate(shape.block_shapes) if block.num_experts] == list(blocks)
    assert [i for i, block in enumerate(shape.mixer_shapes) if block.num_experts] == list(mixer)


@torch.no_grad()
def test_a_file_tells_what_it_is(tmp_path: Path) -> None:
    config, state, given = fixture()
    kind, guessed = guess_original(state, HEADS)
    assert kind == "microdit"
    same = (
        "input_size", "dim", "depth", "head_dim", "multiple_of", "caption_channels", "num_experts", "patch_mixer_dim",
        "patch_mixer_mlp_ratio", "pos_interp_scale", "experts_every_n",
    )
    assert {name: guessed[name] for name in same} == {name: config[name] for name in same}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        module = load_pretrained(tmp_path / name, HEADS)
        assert_equal_to(module(given["in.x"], given["in.t"], given["in.y"]), given["out.full"])
    with pytest.raises(ValueError, match="the checkpoint is 64 wide, and no published MicroDiT"):
        guess_original(state)


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_file_gives_its_own_shape_again(name: str) -> None:
    shape = MicroDiTConfig(**asdict(PRESETS[name]) | {"sample_size": 64, "position_scale": 2.0, "in_channels": 16})
    with torch.device("meta"):
        network = MicroDiT(**asdict(shape))
    state = to_microdit(network)
    state["pos_embed"] = MicroDiT(**asdict(shape) | SMALL).positions[None, :4].expand(1, -1, -1)
    state["pos_embed"] = torch.cat([state["pos_embed"], torch.zeros(1, 1020, shape.hidden_size)], dim=1)
    kind, guessed = guess_original(state)
    with torch.device("meta"):
        module = from_original(kind, guessed, {key: t.to("meta") for key, t in state.items()})
    assert module.shape.block_shapes == shape.block_shapes
    assert module.shape.mixer_shapes == shape.mixer_shapes
    assert module.shape.position_scale == 2.0
    assert module.shape.own_grid == (32, 32)


SMALL = {"num_layers": 1, "mixer_layers": 0, "text_size": 4}
"""What positions do not depend on, cut down."""
