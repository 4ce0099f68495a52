"""`mezzotint convert`: from a checkpoint, a folder of diffusers, or a pipeline to a folder that loads again."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mezzotint.__main__ import app
from mezzotint.dit.checkpoints.diffusers_folders import from_diffusers
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.video_dit import VideoDiT
from mezzotint.sampling.class_pipeline import ClassPipeline
from mezzotint.sampling.pipeline import Pipeline

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "reference"
LAYOUT = "1 + 1x[1,0,1,0] + 0"
CUT = "1 + 1x[1,1,1,0] + 1"


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def original(kind: str) -> dict[str, torch.Tensor]:
    tensors = load_file(REFERENCE / f"{kind}.safetensors")
    return {key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}


def test_a_dit_checkpoint_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    save_file(original("dit"), tmp_path / "dit.safetensors")
    out = tmp_path / "deep" / "cut"
    done = convert(tmp_path / "dit.safetensors", "--density", LAYOUT, "--heads", 4, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    network = ClassDiT.from_pretrained(out)
    # What a pooling block loses, q and k, is as much as merging brings.
    counted = sum(p.numel() for p in network.parameters())
    assert json.loads(done.stdout) == {
        "folder": str(out), "network": "ClassDiT", "layout": LAYOUT,
        "parameters": {"dense": counted, "cut": counted},
    }
    assert network.config.segments == LAYOUT
    assert torch.equal(network.blocks[1].attn.q.weight, original("dit")["blocks.1.attn.qkv.weight"][:48])


def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    state = original("dit")
    worse = {key: torch.zeros_like(t) for key, t in state.items()}
    settings = argparse.Namespace(model="DiT-S/2")
    torch.save({"model": worse, "ema": state, "opt": {}, "args": settings}, tmp_path / "dit.pt")
    done = convert(tmp_path / "dit.pt", "--density", LAYOUT, "--heads", 4, "-o", tmp_path / "cut")
    assert done.exit_code == 0, done.output
    network = ClassDiT.from_pretrained(tmp_path / "cut")
    assert torch.equal(network.final.linear.weight, state["final_layer.linear.weight"])


def test_a_layout_that_does_not_add_up_leaves_nothing_behind(tmp_path: Path) -> None:
    save_file(original("latte"), tmp_path / "latte.safetensors")
    done = convert(tmp_path / "latte.safetensors", "--density", LAYOUT, "--heads", 4, "-o", tmp_path / "cut")
    assert done.exit_code == 1
    assert "adds up to 3 blocks, and there are 2" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["latte.safetensors"]


def test_a_pipeline_keeps_its_other_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, out = tmp_path / "pipeline", tmp_path / "cut"
    dense = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=3, sample_size=8, num_embeds_ada_norm=7
    )
    dense.save_pretrained(source / "transformer")
    (source / "transformer" / "older.safetensors").write_bytes(b"left over")
    (source / "scheduler").mkdir()
    (source / "scheduler" / "scheduler_config.json").write_text('{"num_train_timesteps": 1000}')
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (source / "model_index.json").write_text(json.dumps(index))
    (source / "README.md").write_text("The card of the dense weights.")
    done = convert(source, "--density", LAYOUT, "-o", out)
    assert done.exit_code == 0, done.output
    assert "ClassDiT in 1 + 1x[1,0,1,0] + 0" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["model_index.json", "scheduler", "transformer"]
    assert not (out / "transformer" / "older.safetensors").exists()
    written = json.loads((out / "model_index.json").read_text())
    ours = {"_class_name": "ClassPipeline", "transformer": ["mezzotint.dit.class_dit", "ClassDiT"]}
    assert written == index | ours
    assert ClassDiT.from_pretrained(out / "transformer").config.segments == LAYOUT


def test_a_checkpoint_alone_becomes_a_model_with_the_parts_of_a_pipeline(tmp_path: Path, class_model: Path) -> None:
    torch.manual_seed(0)
    alone = from_diffusers(class_model / "transformer")
    alone.save_pretrained(tmp_path / "alone")
    done = convert(tmp_path / "alone", "--density", CUT, "-o", tmp_path / "cut", "--parts-from", class_model)
    assert done.exit_code == 0, done.output
    pipeline = ClassPipeline.from_pretrained(str(tmp_path / "cut"))
    assert pipeline.transformer.config.segments == CUT
    assert pipeline("golden retriever", seed=1, num_inference_steps=2, density="fast").images[0].size == (16, 16)
    for source, parts, words in (
        (class_model, class_model, "has parts of its own, so leave it out"),
        (tmp_path / "alone", tmp_path / "nowhere", "it must be a pipeline's folder, with a model_index.json"),
    ):
        done = convert(source, "--density", CUT, "-o", tmp_path / "other", "--parts-from", parts)
        assert done.exit_code == 1
        assert words in done.stderr
        assert not (tmp_path / "other").exists()


def test_a_model_of_ours_is_cut_and_draws(tmp_path: Path, tiny_model: Path) -> None:
    done = convert(tiny_model, "--density", "0 + 1x[1,0,1,0] + 0", "-o", tmp_path / "cut")
    assert done.exit_code == 0, done.output
    pipeline = Pipeline.from_pretrained(str(tmp_path / "cut"))
    assert pipeline.transformer.config.segments == "0 + 1x[1,0,1,0] + 0"
    assert pipeline("a red apple", seed=1, num_inference_steps=2).images[0].size == (32, 32)


def test_a_folder_of_ours_with_a_key_too_few_is_refused(tmp_path: Path) -> None:
    ClassDiT(sample_size=8, hidden_size=24, num_heads=2, num_layers=3, num_classes=7).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["positions"]
    save_file(state, file)
    done = convert(tmp_path / "a", "--density", LAYOUT, "-o", tmp_path / "cut")
    assert done.exit_code == 1
    assert "missing: positions" in done.stderr


def test_a_folder_of_ours_is_cut(tmp_path: Path) -> None:
    VideoDiT(sample_size=8, hidden_size=24, num_heads=2, num_layers=6, num_frames=3).save_pretrained(tmp_path / "dense")
    assert convert(tmp_path / "dense", "--density", LAYOUT, "-o", tmp_path / "cut").exit_code == 0
    again = convert(tmp_path / "cut", "--density", LAYOUT, "-o", tmp_path / "again")
    assert again.exit_code == 1
    assert "only a dense one can be cut" in again.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": "no-such-model"}, "SOURCE is 'no-such-model'; there is no such file or folder"),
        ({"density": "dit-xxl"}, "layout is 'dit-xxl'; it must be one of dit-xl-256,"),
        ({"heads": None}, "the checkpoint is 48 wide, and no published network of that width"),
        ({"output": "."}, "-o is .; it is there already"),
        ({"source": "broken.pt"}, "broken.pt cannot be read as weights"),
        ({"source": "harmful.pt"}, "harmful.pt cannot be read as weights"),
        ({"source": "list.pt"}, "list.pt holds no state dict"),
        ({"source": "text.txt"}, "text.txt ends in '.txt'"),
        ({"source": "empty"}, "config.json cannot be read"),
        ({"source": "other.safetensors"}, "the checkpoint is neither a DiT nor a Latte nor a MicroDiT"),
        ({"source": "sparsedit.safetensors"}, "the checkpoint is a SparseDiT; it is in segments already"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(original("dit"), "dit.safetensors")
    save_file(original("sparsedit"), "sparsedit.safetensors")
    save_file({"weight": torch.zeros(1)}, "other.safetensors")
    Path("broken.pt").write_bytes(b"PK nothing")
    torch.save({"model": Harmful()}, "harmful.pt")
    torch.save([1, 2], "list.pt")
    Path("text.txt").touch()
    Path("empty").mkdir()
    given = {"source": "dit.safetensors", "density": LAYOUT, "output": "cut", "heads": 4} | change
    heads = [] if given["heads"] is None else ["--heads", given["heads"]]
    done = convert(given["source"], "--density", given["density"], "-o", given["output"], *heads)
    assert done.exit_code == 1
    assert done.stderr.startswith("mezzotint: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("cut").exists()


class Harmful:
    """What a file that is not only weights may hold."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, ("harmed",)
