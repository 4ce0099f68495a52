"""Class labels to pixels, against diffusers' own DiTPipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from mezzotint.__main__ import app
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.class_pipeline import ClassPipeline
from mezzotint.sampling.engine import Cancelled, Progress
from mezzotint.sampling.hub import fingerprint
from mezzotint.sampling.intake import accept
from mezzotint.sampling.media import provenance, read_metadata
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.request import RequestError
from mezzotint.sampling.torch_engine import TorchEngine


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ClassPipeline:
    return ClassPipeline.from_pretrained(str(folder), dtype=dtype)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


class LastPass:
    """What a network's decoder was given, and what it made of it: exact, before pixels are rounded."""

    def __init__(self, pipeline: Any) -> None:
        self.latents: list[torch.Tensor] = []
        self.pictures: list[torch.Tensor] = []
        decode = pipeline.vae.decode

        def keep(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            out = decode(latents, *args, **kwargs)
            self.latents.append(latents)
            self.pictures.append(out.sample)
            return out

        pipeline.vae.decode = keep


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("guidance", [4.0, 1.0, 1.5])
def test_a_dense_model_draws_what_diffusers_draws(class_model: Path, scheduler: str, guidance: float) -> None:
    theirs = DiTPipeline.from_pretrained(class_model)
    theirs.set_progress_bar_config(disable=True)
    ours = load(class_model)
    if scheduler == "dpm":
        theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
        ours.scheduler = DPMSolverMultistepScheduler.from_config(ours.scheduler.config)
    seeds, labels = [11, 12, 13], [207, 3, 207]
    seen, expected = LastPass(ours), LastPass(theirs)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = {"guidance_scale": guidance, "num_inference_steps": 7}
    wanted = theirs(class_labels=labels, generator=generators, **steps).images
    drawn = ours(labels, seed=seeds, **steps)
    latents = torch.cat(expected.latents)
    assert ((torch.cat(seen.latents) - latents).abs().max() / latents.abs().max()).item() < 2e-5
    pictures = torch.cat(expected.pictures)
    assert ((torch.cat(seen.pictures) - pictures).abs().max() / pictures.abs().max()).item() < 2e-5
    for image, other in zip(drawn.images, wanted, strict=True):
        assert np.abs(pixels(image) - pixels(other)).max() <= 1
    assert np.abs(pixels(drawn.images[0]) - pixels(drawn.images[1])).max() > 3


def test_guidance_below_one_is_a_scale_like_any_other(class_model: Path) -> None:
    """Scale 0 draws no class at all, so the label does not matter."""
    pipeline = load(class_model)
    images = [
        pipeline(label, seed=5, num_inference_steps=3, guidance_scale=scale).images[0]
        for label, scale in ((1, 0.0), (2, 0.0), (1, 1.0))
    ]
    assert np.array_equal(pixels(images[0]), pixels(images[1]))
    assert not np.array_equal(pixels(images[0]), pixels(images[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_depends_on_its_seed_and_not_on_what_is_drawn_with_it(
    cut_class_model: Path, dtype: torch.dtype
) -> None:
    pipeline = load(cut_class_model, dtype)
    many = pipeline(["golden retriever", 3], seed=5, num_images=2, num_inference_steps=4, density="0.3-0.75")
    assert many.seeds == [5, 6, 7, 8]
    for i, (label, seed) in enumerate(zip((207, 207, 3, 3), many.seeds, strict=True)):
        alone = pipeline(label, seed=seed, num_inference_steps=4, density="0.3-0.75").images[0]
        assert np.array_equal(pixels(many.images[i]), pixels(alone))
    together = pipeline([207, 207, 3, 3], seed=5, num_inference_steps=4, density="0.3-0.75", batch_size=4)
    for one, other in zip(together.images, many.images, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= (1 if dtype == torch.float32 else 8)


def test_each_step_takes_the_grid_of_the_schedule(cut_class_model: Path) -> None:
    pipeline, asked = load(cut_class_model), []
    forward = pipeline.transformer.forward

    def keep(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, *, grid: Any, **more: Any) -> torch.Tensor:
        asked.append((tuple(x.shape), int(t[0]), labels.tolist(), grid))
        return forward(x, t, labels, grid=grid, **more)

    pipeline.transformer.forward = keep
    pipeline(3, width=24, height=16, seed=1, num_inference_steps=4, density="0.3-0.75")
    timesteps = pipeline.scheduler.timesteps.tolist()
    # 25, 25, 40 and 55 % of the 4 x 6 tokens, in their aspect.
    grids = [(2, 3), (2, 3), (2, 4), (3, 4)]
    assert asked == [((2, 4, 8, 12), t, [3, 1000], grid) for t, grid in zip(timesteps, grids, strict=True)]
    asked.clear()
    pipeline(3, seed=1, num_inference_steps=2, guidance_scale=1.0)
    assert asked == [((1, 4, 8, 8), t, [3], (4, 4)) for t in pipeline.scheduler.timesteps.tolist()]


def test_the_density_changes_the_picture_and_the_size_is_the_one_asked_for(cut_class_model: Path) -> None:
    pipeline = load(cut_class_model)
    full, sparse = (
        pipeline(3, seed=1, num_inference_steps=3, density=density, width=24).images[0] for density in ("full", "fast")
    )
    assert full.size == sparse.size == (24, 16)
    assert np.abs(pixels(full) - pixels(sparse)).max() > 3


def test_names_and_numbers_of_a_class_draw_the_same(class_model: Path) -> None:
    pipeline = load(class_model)
    both = (207, "Golden Retriever")
    by_number, by_name = (pipeline(label, seed=1, num_inference_steps=2).images[0] for label in both)
    assert np.array_equal(pixels(by_number), pixels(by_name))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_label": 1000}, "class_label is 1000; this model has 1,000 classes"),
        ({"class_label": "dog"}, '"dog"; this model has no class of that name'),
        ({"class_label": 1, "width": 18}, "width is 18; it must be a positive multiple of 4"),
        ({"class_label": 1, "density": "fast"}, "this model has no segments"),
        ({"class_label": [1, 2], "seed": [1, 2, 3]}, "seed has 3 numbers for 2 pictures"),
    ],
)
def test_bad_arguments_are_named(class_model: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load(class_model)(**arguments)


def test_each_kind_of_model_is_loaded_by_its_own_pipeline(class_model: Path, tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="it draws by class labels, and a model that draws by text is needed here"):
        Pipeline.from_pretrained(str(class_model))
    with pytest.raises(RequestError, match="it draws by text, so load it with Pipeline"):
        ClassPipeline.from_pretrained(str(tiny_model))


@pytest.mark.parametrize("folder", ["class_model", "cut_class_model"])
def test_a_saved_pipeline_draws_the_same(folder: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipeline = load(request.getfixturevalue(folder))
    pipeline.register_to_config(guidance_scale=2.5, num_inference_steps=3)
    pipeline.save_pretrained(tmp_path / "again")
    card = find_model(str(tmp_path / "again"))
    assert (card.guidance_scale, card.num_inference_steps) == (2.5, 3)
    assert card.classes is not None
    assert card.classes.names[207] == "golden retriever"
    again = load(tmp_path / "again")
    assert isinstance(again.transformer, ClassDiT)
    assert np.array_equal(pixels(again(1, seed=2).images[0]), pixels(pipeline(1, seed=2).images[0]))


def test_a_published_folder_with_old_names_and_torchs_weights_draws_the_same(class_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(class_model, folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {"_class_name": "Transformer2DModel", "num_vector_embeds": None}
    path.write_text(json.dumps(config))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    old, new = (load(one)(5, seed=1, num_inference_steps=2).images[0] for one in (folder, class_model))
    assert np.array_equal(pixels(old), pixels(new))


def test_weights_that_do_not_fit_are_one_sentence(class_model: Path, tmp_path: Path) -> None:
    shutil.copytree(class_model, tmp_path / "broken")
    path = tmp_path / "broken" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 6}))
    with pytest.raises(RequestError, match=r"it cannot be loaded: the checkpoint does not fit .* missing: ") as caught:
        load(tmp_path / "broken")
    assert "\n" not in str(caught.value)


# The engine, which serves both kinds.


def test_the_engine_draws_what_the_pipeline_draws_and_says_what_it_did(cut_class_model: Path) -> None:
    engine = TorchEngine("cpu", "fp32")
    asked, plan = accept({
        "class_label": "golden retriever", "model": str(cut_class_model), "num_inference_steps": 3, "seed": 3,
        "num_images": 2, "density": "fast",
    })
    seen: list[Progress] = []
    drawn = engine.draw(asked, on_progress=seen.append)
    alone = load(cut_class_model)(207, seed=4, num_inference_steps=3, density="fast").images[0]
    assert np.array_equal(pixels(drawn.images[1]), pixels(alone))
    assert drawn.flops == plan.flops > 0
    assert [(p.phase, p.step, p.preview) for p in seen] == [
        ("load", 0, None), ("sample", 1, None), ("sample", 2, None), ("sample", 3, None)
    ]
    told = provenance(asked, drawn, 1)
    assert (told["request"]["class_label"], told["request"]["prompt"]) == ("golden retriever", None)
    hidden = provenance(asked.model_copy(update={"include_prompt_in_metadata": False}), drawn, 0)
    assert "class_label" not in hidden["request"]
    with pytest.raises(Cancelled):
        engine.draw(asked, cancelled=lambda: True)


def test_a_fingerprint_is_of_everything_that_makes_the_picture(class_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(class_model, folder)
    seen = {fingerprint(find_model(str(folder)))}
    for name in ("transformer", "vae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        seen.add(fingerprint(find_model(str(folder))))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.02", "0.03"))
    seen.add(fingerprint(find_model(str(folder))))
    assert len(seen) == 4


def test_the_command_line_draws_a_class(cut_class_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "dog.png"
    options = ["--model", str(cut_class_model), "--seed", "3", "--steps", "2", "--density", "fast", "-o", str(file)]
    for label in ("golden retriever", "207"):
        done = CliRunner().invoke(app, ["generate", "--class-label", label, *options, "--json", "--dtype", "fp32"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["outputs"][0]["seed"] == 3
        metadata = read_metadata(Image.open(file))
        assert metadata is not None
        assert metadata["request"]["class_label"] == (label if label[0] == "g" else 207)
    expected = load(cut_class_model)(207, seed=3, num_inference_steps=2, density="fast").images[0]
    assert np.array_equal(pixels(Image.open(file)), pixels(expected))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--class-label", "1000"], 1, "class_label is 1000; "),
        (["--class-label", "zebra"], 1, 'class_label is "zebra"; '),
        (["a cat"], 1, 'prompt is "a cat"; '),
        (["--class-label", ""], 1, "class_label is empty"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input_on_the_command_line_is_one_sentence(
    class_model: Path, arguments: list[str], code: int, said: str
) -> None:
    done = CliRunner().invoke(app, ["generate", *arguments, "--model", str(class_model)])
    assert done.exit_code == code
    assert said in done.stderr
    assert done.stdout == ""
