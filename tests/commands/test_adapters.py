"""`mezzotint adapters`: a file comes in, is listed and described, and is merged into a model; bad ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.sampling.adapter_card import AdapterCard
from mezzotint.sampling.adapters import save_adapter
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.hub import fingerprint
from mezzotint.sampling.panels import panel_layout

MODULE = "blocks.0.attn.qkv"


@pytest.fixture(autouse=True)
def own_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEZZOTINT_ADAPTERS_DIR", str(tmp_path / "adapters"))
    return tmp_path / "adapters"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["adapters", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return str(result.stderr)


def write_adapter(path: Path, base: str, base_fingerprint: str | None, module: str = MODULE) -> Path:
    generator = torch.Generator().manual_seed(0)
    pair = (torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator))
    card = AdapterCard(rank=2, alpha=4.0, base=base, base_fingerprint=base_fingerprint, layout=panel_layout("1x2"),
                       marker="[TWO-STYLES]")
    save_adapter(path, {module: pair}, card)
    return path


def test_an_adapter_is_imported_listed_described_and_merged(tmp_path: Path, tiny_model: Path) -> None:
    print_ = fingerprint(find_model(str(tiny_model)))
    file = write_adapter(tmp_path / "styles.safetensors", "tiny", print_)
    imported = report("import", file, "--base", tiny_model)
    assert (imported["name"], imported["base_fingerprint"], imported["panels"]) == ("styles", print_, "1x2")
    assert [row["name"] for row in report("list")["adapters"]] == ["styles"]
    assert report("info", "styles") == imported
    fused = report("fuse", "styles:0.5", "--model", tiny_model, "-o", tmp_path / "fused")
    assert fused["adapters"] == {"styles": 0.5}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_model / weights), load_file(tmp_path / "fused" / weights)
    theirs = load_file(file)
    down, up = (theirs[f"transformer.{MODULE}.lora_{half}.weight"] for half in "AB")
    assert {key for key in before if not torch.equal(before[key], after[key])} == {f"{MODULE}.weight"}
    torch.testing.assert_close(after[f"{MODULE}.weight"], before[f"{MODULE}.weight"] + 0.5 * 2 * up @ down)
    assert find_model(str(tmp_path / "fused")).guidance_scale == 2.0


def test_another_base_is_refused_with_both_fingerprints(tmp_path: Path, tiny_model: Path) -> None:
    file = write_adapter(tmp_path / "styles.safetensors", "other", "f" * 16)
    said = refused("import", file, "--base", tiny_model)
    assert "f" * 16 in said
    assert fingerprint(find_model(str(tiny_model))) in said
    assert "name that model" in refused("import", file)


def test_modules_that_a_base_has_not_are_refused(tmp_path: Path, tiny_model: Path, own_adapters: Path) -> None:
    file = write_adapter(tmp_path / "styles.safetensors", "tiny", None, "blocks.9.attn.qkv")
    assert "changes blocks.9.attn.qkv" in refused("import", file, "--base", tiny_model)
    assert not own_adapters.exists()


def test_a_pickle_by_another_name_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    assert "not safetensors but a zip archive" in refused("import", tmp_path / "theirs.safetensors")


def test_an_adapter_for_flux_needs_no_weights_of_flux(tmp_path: Path) -> None:
    name = "transformer.single_transformer_blocks.37.attn.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 3072), f"{name}.lora_B.weight": torch.ones(3072, 2)},
              tmp_path / "Theirs.safetensors")
    imported = report("import", tmp_path / "Theirs.safetensors")
    assert (imported["name"], imported["base"], imported["base_fingerprint"]) == ("theirs", "FLUX.1", None)
    assert "of that name is there already" in refused("import", tmp_path / "Theirs.safetensors")


def test_a_bad_file_does_not_hide_the_others(tmp_path: Path, own_adapters: Path) -> None:
    write_adapter(own_adapters / "good.safetensors", "tiny", None)
    (own_adapters / "bad.safetensors").write_bytes(b"nothing")
    bad, good = report("list")["adapters"]
    assert (good["name"], good["error"], good["rank"]) == ("good", None, 2)
    assert (bad["name"], bad["rank"]) == ("bad", None)
    assert "is not safetensors" in bad["error"]


def test_the_ten_published_ones_are_listed() -> None:
    rows = report("list", "--published")["adapters"]
    assert len(rows) == 10
    assert {
        key: value for key, value in rows[1].items() if key != "prompt"
    } == {"name": "film-storyboard", "width": 1024, "height": 1536, "panels": "3x1", "here": False}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "none"), "the adapters here are none"),
        (("info", "../x"), "a name has lower-case letters"),
        (("fuse", "a:b", "--model", "emoji-256", "-o", "x"), "adapter is 'a:b'; it must be NAME or NAME:WEIGHT"),
        (("import", "none.safetensors"), "cannot be read: No such file"),
        (("compose", "cats", "-o", "x"), "task is 'cats'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)
