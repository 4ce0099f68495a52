"""Adapters for FLUX in the layouts of others mean the same by diffusers' names."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.dit.adapters import Lora, check_fit, linears
from mezzotint.sampling.adapter_layouts import flux_pairs, flux_skeleton, key_layout
from mezzotint.sampling.published_adapters import PUBLISHED, fetch
from mezzotint.sampling.safetensors_header import AdapterFileError

FILE = Path("theirs.safetensors")
C, RANK = 3072, 2


def matrices(out: int, into: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, into, generator=generator), torch.randn(out, RANK, generator=generator)


def product(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1] @ pair[0]


@pytest.fixture(scope="module")
def flux() -> torch.nn.Module:
    return flux_skeleton()


def test_the_skeleton_has_the_linears_that_the_published_adapters_change(flux: torch.nn.Module) -> None:
    in_blocks = {path: linear for path, linear in linears(flux).items() if "transformer_blocks" in path}
    assert len(in_blocks) == 494
    assert sum(16 * (linear.in_features + linear.out_features) for linear in in_blocks.values()) == 85_917_696


def test_kohya_with_its_fused_qkv_and_alpha(flux: torch.nn.Module) -> None:
    down, up = matrices(3 * C, C, 1)
    name = "lora_unet_double_blocks_3_img_attn_qkv"
    theirs = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    single_down, single_up = matrices(C, 5 * C, 2)
    single = "lora_unet_single_blocks_7_linear2"
    theirs |= {f"{single}.lora_down.weight": single_down, f"{single}.lora_up.weight": single_up}
    found = flux_pairs(theirs, {}, FILE)
    parts = [f"transformer_blocks.3.attn.to_{part}" for part in "qkv"]
    assert found.keys() == {*parts, "single_transformer_blocks.7.proj_out"}
    fused = torch.cat([product(found[part]) for part in parts])
    torch.testing.assert_close(fused, (up @ down) / RANK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(product(found["single_transformer_blocks.7.proj_out"]), single_up @ single_down)
    check_fit("theirs", {p: Lora(down_rI=pair[0], up_Or=pair[1]) for p, pair in found.items()}, flux)


def test_xlabs_processors(flux: torch.nn.Module) -> None:
    down, up = matrices(3 * C, C, 1)
    name = "double_blocks.0.processor"
    theirs = {f"{name}.qkv_lora1.down.weight": down, f"{name}.qkv_lora1.up.weight": up}
    other = matrices(C, C, 2)
    theirs |= {f"{name}.proj_lora2.down.weight": other[0], f"{name}.proj_lora2.up.weight": other[1]}
    found = flux_pairs(theirs, {}, FILE)
    parts = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    assert found.keys() == {*parts, "transformer_blocks.0.attn.to_add_out"}
    torch.testing.assert_close(torch.cat([product(found[part]) for part in parts]), up @ down)
    check_fit("theirs", {p: Lora(down_rI=pair[0], up_Or=pair[1]) for p, pair in found.items()}, flux)


PEFT = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(("metadata", "scale"), [({}, 1.0), ({"transformer.lora_alpha": 8, "transformer.r": 2}, 4.0)])
def test_peft_and_ai_toolkit_without_alpha_count_as_they_are(metadata: dict[str, int], scale: float) -> None:
    down, up = matrices(C, C, 1)
    header = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    found = flux_pairs({f"{PEFT}.lora_A.weight": down, f"{PEFT}.lora_B.weight": up}, header, FILE)
    torch.testing.assert_close(product(found["transformer_blocks.0.attn.to_q"]), scale * (up @ down))


@pytest.mark.parametrize(
    ("alpha", "said"),
    [(0.0, r"\[0\.0\]"), (-1.0, r"\[-1\.0\]"), (1e9, "at most 65536")],
)
def test_an_alpha_on_which_diffusers_would_not_end_is_refused(alpha: float, said: str) -> None:
    name = "lora_unet_single_blocks_0_linear2"
    down, up = matrices(4, 4, 1)
    theirs = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    with pytest.raises(AdapterFileError, match=said):
        flux_pairs(theirs, {}, FILE)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["lora_te1_text_model_encoder.lora_down.weight"], "nothing of a text encoder"),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "other.diff"], "holds other.diff, which .* kohya"),
        (["double_blocks.0.processor.qkv_lora1.down.weight", "x"], "holds x, which the key layout xlabs"),
        (["lora_unet_x.hada_w1_a"], "which the key layout peft"),
        (["text_encoder.a.lora_A.weight"], "which the key layout peft"),
    ],
)
def test_keys_of_no_layout_are_refused_by_name(keys: list[str], said: str) -> None:
    with pytest.raises(AdapterFileError, match=said):
        key_layout(dict.fromkeys(keys), FILE)


@pytest.mark.parametrize(
    "keys",
    [
        ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"],
        ["lora_unet_double_blocks_77_img_attn_qkv.lora_down.weight"],
        ["double_blocks.0.processor.qkv_lora1.down.weight"],
        ["single_blocks.0.processor.qkv_lora.up.weight"],
    ],
)
def test_what_diffusers_cannot_convert_is_one_sentence(keys: list[str]) -> None:
    with pytest.raises(AdapterFileError, match=r"^theirs\.safetensors (cannot be converted by diffusers|holds).*\.$"):
        flux_pairs({key: torch.zeros(2, 2) for key in keys}, {}, FILE)


@pytest.mark.parametrize(
    "written", ["{", "[]", '{"transformer.lora_alpha": "x"}', '{"transformer.rank_pattern": {"a": 3}}']
)
def test_metadata_of_peft_that_make_no_sense_are_refused(written: str) -> None:
    down, up = matrices(4, 4, 1)
    theirs = {f"{PEFT}.lora_A.weight": down, f"{PEFT}.lora_B.weight": up}
    with pytest.raises(AdapterFileError, match=r"lora_adapter_metadata that|lora_alpha is x|rank_pattern, which"):
        flux_pairs(theirs, {"lora_adapter_metadata": written}, FILE)


WORDS = ("lora_unet_", "double_blocks", "single_blocks", "_0_", ".0.", "_18_", "img_attn_qkv", "linear1", "processor.",
         "qkv_lora1", "proj_lora", "qkv", "final_layer_linear", "transformer.", "to_q", "lora", "alpha_")
ENDS = (".lora_down.weight", ".lora_up.weight", ".alpha", ".down.weight", ".up.weight", ".lora_A.weight",
        ".lora_B.weight", ".processor.qkv_lora1.down.weight", ".processor.qkv_lora1.up.weight")
NAMES = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_37_linear1", "double_blocks.0",
         "single_blocks.0", "lora_unet_final_layer_adaLN_modulation_1", "lora_unet_vector_in_out_layer", PEFT)
names = st.sampled_from(NAMES) | st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join)
theirs = st.dictionaries(
    st.tuples(names, st.sampled_from(ENDS)).map("".join),
    st.lists(st.integers(1, 9), max_size=2).map(lambda shape: torch.ones(shape)), min_size=1, max_size=4,
)


@given(tensors=theirs)
def test_any_keys_are_converted_or_refused_and_nothing_else(tensors: dict[str, Tensor]) -> None:
    refused = ""
    try:
        found = flux_pairs(tensors, {}, FILE)
    except AdapterFileError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("theirs.safetensors ")
        assert refused.endswith(".")
    else:
        assert all(down.shape[0] == up.shape[1] for down, up in found.values())


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_canvases_fall_on_the_patch_of_flux(name: str) -> None:
    known = PUBLISHED[name]
    assert (known.canvas.width, known.canvas.height) == (known.width, known.height)
    assert [known.prompt.find(marker) for marker in known.layout.markers] == sorted(
        {known.prompt.index(marker) for marker in known.layout.markers}
    )
    filled = known.prompt.format(*known.layout.markers, summary="cats")
    assert "{" not in filled


def test_ten_are_published() -> None:
    assert len(PUBLISHED) == 10


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object) -> str:
        raise OSError("Network is\nunreachable")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(ValueError, match=r"FILE is 'font-design'; .* cannot be reached .*: Network is unreachable\.$"):
        fetch("font-design")
