"""Original checkpoints of DiT, SparseDiT and Latte: their outputs, the way back, and what does not fit."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open

from mezzotint.dit.checkpoints import from_original
from mezzotint.dit.checkpoints.dit import to_dit
from mezzotint.dit.checkpoints.latte import to_latte

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "reference"
KINDS = ("dit", "sparsedit", "latte")


class Fixture(NamedTuple):
    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def fixture(kind: str) -> Fixture:
    with safe_open(REFERENCE / f"{kind}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    return Fixture(
        config=config,
        state={key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")},
        inputs=(tensors["in.x"], tensors["in.t"], tensors["in.y"]),
        outputs={key: t for key, t in tensors.items() if key.startswith("out")},
    )


def assert_equal_to(out: torch.Tensor, reference: torch.Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert out.shape == reference.shape
    assert ((out - reference).abs().max() / reference.abs().max()).item() < 1e-5


@pytest.mark.parametrize("kind", ["dit", "latte"])
@torch.no_grad()
def test_the_output_is_the_originals(kind: str) -> None:
    given = fixture(kind)
    module = from_original(kind, given.config, given.state)
    assert_equal_to(module(*given.inputs), given.outputs["out"])


@pytest.mark.parametrize("side", [3, 4, 5])
@torch.no_grad()
def test_one_set_of_weights_gives_the_originals_output_on_each_grid(side: int) -> None:
    given = fixture("sparsedit")
    module = from_original("sparsedit", given.config, given.state)
    assert_equal_to(module(*given.inputs, grid=(side, side)), given.outputs[f"out.grid{side}"])


@torch.no_grad()
def test_the_default_grid_of_sparsedit_is_its_semantic_size() -> None:
    given = fixture("sparsedit")
    module = from_original("sparsedit", given.config, given.state)
    assert_equal_to(module(*given.inputs), given.outputs["out.grid4"])


@torch.no_grad()
def test_guidance_on_a_doubled_batch_is_the_originals() -> None:
    given = fixture("dit")
    module = from_original("dit", given.config, given.state)
    x = torch.cat([given.inputs[0][:1], torch.randn(1, 4, 16, 16)])  # the second half is not read
    out = module.forward_with_cfg(x, torch.full((2,), 100.0), torch.tensor([2, 7]), 1.5)
    assert_equal_to(out, given.outputs["out.cfg1p5"])


@torch.no_grad()
def test_guidance_of_a_clip_reaches_all_channels_of_the_noise_and_no_variance() -> None:
    given = fixture("latte")
    module = from_original("latte", given.config, given.state)
    x, t = given.inputs[0][:1].repeat(2, 1, 1, 1, 1), torch.full((2,), 100.0)
    wanted, unwanted = plain = module(x, t, torch.tensor([2, 7]))
    out = module.forward_with_cfg(x, t, torch.tensor([2, 7]), 3.0)
    for half in out:
        torch.testing.assert_close(half[:, :4], (3 * wanted - 2 * unwanted)[:, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[:, :, 4:], plain[:, :, 4:])


@torch.no_grad()
def test_latte_without_classes_takes_no_label() -> None:
    given = fixture("latte")
    state = {key: t for key, t in given.state.items() if not key.startswith("y_embedder")}
    module = from_original("latte", given.config | {"extras": 1}, state)
    x, t, y = given.inputs
    assert module(x, t, None).shape == given.outputs["out"].shape
    with pytest.raises(ValueError, match="class_labels is given; this network is unconditional"):
        module(x, t, y)


@torch.no_grad()
def test_positions_are_those_of_the_checkpoint() -> None:
    given = fixture("dit")
    moved = from_original("dit", given.config, given.state | {"pos_embed": given.state["pos_embed"] * 2})
    assert (moved(*given.inputs) - given.outputs["out"]).abs().max() > 1e-3


def test_a_missing_label_is_refused() -> None:
    given = fixture("dit")
    with pytest.raises(ValueError, match="class_labels is None; this network needs a label"):
        from_original("dit", given.config, given.state)(*given.inputs[:2], None)


@pytest.mark.parametrize(("kind", "back"), [("dit", to_dit), ("latte", to_latte)])
def test_the_way_back_keeps_every_bit(kind: str, back: Any) -> None:
    given = fixture(kind)
    written = back(from_original(kind, given.config, given.state))
    assert written.keys() == given.state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in given.state.items())


def test_the_dtype_of_the_checkpoint_stays() -> None:
    given = fixture("dit")
    module = from_original("dit", given.config, {key: t.bfloat16() for key, t in given.state.items()})
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module(*given.inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_missing_extra_and_misshapen_keys_are_named_together(kind: str) -> None:
    given = fixture(kind)
    state = dict(given.state)
    del state["t_embedder.mlp.0.bias"]
    state["final_layer.extra"] = torch.zeros(1)
    state["x_embedder.proj.weight"] = torch.zeros(48, 3, 2, 2)
    with pytest.raises(ValueError, match=re.escape(
        "the checkpoint does not fit its configuration: missing: t_embedder.mlp.0.bias; not expected: "
        "final_layer.extra; misshapen: x_embedder.proj.weight is [48, 3, 2, 2] and not [48, 4, 2, 2]."
    )):
        from_original(kind, given.config, state)


def test_many_wrong_keys_are_counted() -> None:
    given = fixture("dit")
    with pytest.raises(ValueError, match=r"missing: blocks\.3\..* and 2 more\.$"):
        from_original("dit", given.config | {"depth": 4}, given.state)


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("unet", {}, "kind is 'unet'; it must be one of dit, sparsedit, latte"),
        ("dit", {"windows": 3}, "config has windows; for dit it must have only"),
        ("sparsedit", {"depth": 9}, r"'1 \+ 2x\[1,1,1,1\] \+ 1'; it adds up to 10 blocks, and there are 9"),
        ("sparsedit", {"semantic_size": 9}, r"grid is \(9, 9\); it must be at most \(8, 8\)"),
        ("latte", {"extras": 78}, "extras is 78"),
        ("latte", {"depth": 3}, "num_layers is 3; it must be even"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(kind: str, change: dict[str, Any], named: str) -> None:
    given = fixture(kind if kind in KINDS else "dit")
    with pytest.raises(ValueError, match=named):
        from_original(kind, given.config | change, given.state)
