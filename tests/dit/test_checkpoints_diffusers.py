"""diffusers' DiT and PixArt folders: equal outputs, an exact way back, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, ModelMixin, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file

from mezzotint.dit.checkpoints.diffusers_folders import from_diffusers, to_diffusers
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.video_dit import VideoDiT

SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 3, "num_layers": 2, "sample_size": 8}
T, LABELS = torch.tensor([37, 812]), torch.tensor([3, 7])
TEXT = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(6) < torch.tensor([[3], [6]])


def moved(model: ModelMixin) -> ModelMixin:
    """With weights that are nowhere zero or equal."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def small_dit(**more: Any) -> DiTTransformer2DModel:
    return moved(DiTTransformer2DModel(**SIZES | {"num_embeds_ada_norm": 7} | more))


def small_pixart(**more: Any) -> PixArtTransformer2DModel:
    settings = SIZES | {"out_channels": 6, "cross_attention_dim": 24, "caption_channels": 10}
    return moved(PixArtTransformer2DModel(**settings | more))


def latents(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(2))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-5


@pytest.mark.parametrize("more", [{}, {"out_channels": 6, "norm_eps": 1e-2}], ids=["plain", "sigma"])
@torch.no_grad()
def test_a_dit_gives_diffusers_output(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = small_dit(**more)
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    for side in (8, 12):
        x = latents(side, side)
        assert_close(ours(x, T, LABELS), theirs(x, T, LABELS).sample)


@pytest.mark.parametrize("more", [{}, {"interpolation_scale": 2, "out_channels": None}], ids=["plain", "scaled"])
@torch.no_grad()
def test_a_pixart_gives_diffusers_output(tmp_path: Path, more: dict[str, Any]) -> None:
    theirs = small_pixart(**more)
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    for size in ((8, 8), (12, 6)):
        x = latents(*size)
        expected = theirs(x, TEXT, T, {"resolution": None, "aspect_ratio": None}, encoder_attention_mask=MASK).sample
        assert_close(ours(x, T, TEXT, MASK), expected)


@torch.no_grad()
def test_a_pixart_is_told_the_size_of_its_picture(tmp_path: Path) -> None:
    theirs = small_pixart(use_additional_conditions=True)
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    x, sizes, ratios = latents(8, 8), torch.tensor([[512.0, 768.0], [640.0, 640.0]]), torch.tensor([0.667, 1.0])
    expected = theirs(x, TEXT, T, {"resolution": sizes, "aspect_ratio": ratios[:, None]}).sample
    assert_close(ours(x, T, TEXT, sizes=sizes, aspect_ratios=ratios), expected)
    with pytest.raises(ValueError, match="sizes and aspect_ratios must both be given"):
        ours(x, T, TEXT, sizes=sizes)


OLD = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "only_cross_attention": False}
"""What published folders of both kinds say."""


@pytest.mark.parametrize(
    ("make", "more"), [(small_dit, {"cross_attention_dim": None}), (small_pixart, {})], ids=["dit", "pixart"]
)
def test_a_folder_with_the_old_name_of_the_class_is_read(tmp_path: Path, make: Any, more: dict[str, Any]) -> None:
    make().save_pretrained(tmp_path)
    new = from_diffusers(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | OLD | more))
    old = from_diffusers(tmp_path)
    assert type(old) is type(new)
    assert old.shape == new.shape
    (tmp_path / "config.json").write_text(json.dumps(config | OLD | more | {"only_cross_attention": True}))
    with pytest.raises(ValueError, match="only_cross_attention is True and not False"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | OLD | {"norm_type": "layer_norm"}))
    with pytest.raises(ValueError, match="holds a Transformer2DModel"):
        from_diffusers(tmp_path)


def equal_embedders(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


@pytest.mark.parametrize("shared", [False, True])
def test_embedders_that_are_equal_in_all_blocks_are_kept_once(tmp_path: Path, shared: bool) -> None:
    theirs = equal_embedders(small_dit()) if shared else small_dit()
    theirs.save_pretrained(tmp_path)
    ours = from_diffusers(tmp_path)
    assert isinstance(ours, ClassDiT)
    assert len(ours.conditions) == (1 if shared else 2)
    x = latents(8, 8)
    with torch.no_grad():
        assert_close(ours(x, T, LABELS), theirs(x, T, LABELS).sample)


@pytest.mark.parametrize(
    "make",
    [small_dit, lambda: equal_embedders(small_dit()), small_pixart,
     lambda: small_pixart(use_additional_conditions=True)],
    ids=["dit", "dit, one embedder", "pixart", "pixart, sizes"],
)
def test_a_round_trip_is_exact(tmp_path: Path, make: Any) -> None:
    theirs = make()
    theirs.save_pretrained(tmp_path / "theirs")
    to_diffusers(from_diffusers(tmp_path / "theirs"), tmp_path / "back")
    back = type(theirs).from_pretrained(tmp_path / "back")
    state = back.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    x = latents(8, 8)
    with torch.no_grad():
        if isinstance(theirs, DiTTransformer2DModel):
            assert torch.equal(back(x, T, LABELS).sample, theirs(x, T, LABELS).sample)


def test_weights_in_several_files_and_in_torchs_own_are_read(tmp_path: Path) -> None:
    theirs = small_dit()
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    theirs.save_pretrained(tmp_path / "torch", safe_serialization=False)
    for name in ("parts", "torch"):
        ours = from_diffusers(tmp_path / name)
        torch.testing.assert_close(ours.final.linear.weight, theirs.proj_out_2.weight, atol=0, rtol=0)


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    small_pixart().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["other"] = state.pop("proj_out.bias")
    state["transformer_blocks.1.attn2.to_k.weight"] = torch.zeros(5, 24)
    save_file(state, file)
    with pytest.raises(ValueError, match=(
        r"missing: proj_out\.bias; not expected: other; misshapen: transformer_blocks\.1\.attn2\.to_k\.weight is "
        r"\[5, 24\] and not \[24, 24\]\."
    )):
        from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu' and not 'gelu-approximate'"),
        ({"windows": 3}, "windows is not known"),
        ({"out_channels": 5}, "out_channels is 5"),
        ({"_class_name": "UNet2DModel"}, "holds a UNet2DModel"),
    ],
)
def test_a_configuration_that_we_do_not_have_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    small_dit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        from_diffusers(tmp_path)


def test_files_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        from_diffusers(tmp_path)
    small_dit().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"no header at all")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors cannot be read as weights"):
        from_diffusers(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        from_diffusers(tmp_path)


def test_what_diffusers_cannot_hold_is_not_written(tmp_path: Path) -> None:
    small = {"sample_size": 8, "hidden_size": 24, "num_heads": 2, "num_classes": 7}
    with pytest.raises(ValueError, match=r"segments is .* and must be None; frequency_shift is 0 and must be 1"):
        to_diffusers(ClassDiT(**small, num_layers=6, segments="1 + 1x[1,1,1,1] + 1"), tmp_path)
    with pytest.raises(ValueError, match="network is a VideoDiT"):
        to_diffusers(VideoDiT(**small, num_layers=2), tmp_path)
