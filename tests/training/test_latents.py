"""Pictures to cached latents, and what training reads of them."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from mezzotint.training import encode_latents as module
from mezzotint.training.config import ConfigError
from mezzotint.training.encode_latents import encode_latents
from mezzotint.training.latent_data import LatentData, LatentFolder, draw_latents

COLOURS = {"apple": [(200, 30, 20), (180, 10, 0), (220, 60, 40)], "sky": [(20, 90, 220), (60, 130, 250)]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three red pictures and two blue ones, of different sizes, each with a bright left edge."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colours in COLOURS.items():
        (folder / name / "deeper").mkdir(parents=True)
        for i, colour in enumerate(colours):
            image = Image.new("RGB", (20 + 4 * i, 18), colour)
            image.paste((255, 255, 255), (0, 0, 6, 18))
            image.save(folder / name / (f"deeper/{i}.jpg" if i == 1 else f"{i}.png"))
    (folder / "notes.txt").write_text("no picture")
    return folder


def moments(vae: AutoencoderKL, file: Path, size: int, mirrored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one picture, by diffusers and numpy alone."""
    image = Image.open(file).convert("RGB")
    scale = size / min(image.size)
    # Fitted and cropped about the centre; a source box of the wanted aspect gives both at once.
    side = size / scale
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    values = np.asarray(image).astype(np.float32) / 127.5 - 1
    x = torch.from_numpy(values).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = vae.encode(x.flip(-1) if mirrored else x).latent_dist
    return found.mean[0], found.std[0]


def test_latents_are_the_autoencoders_of_each_picture_with_its_class(
    pictures: Path, class_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_ITEMS", 3)
    assert encode_latents(pictures, class_model, tmp_path / "latents", size=16, batch_size=2) == 5
    data = LatentData(str(tmp_path / "latents"))
    assert (len(data), data.labels, data.index.classes) == (5, [0, 0, 0, 1, 1], ("apple", "sky"))
    assert data.index.shards == (("latents-00000.safetensors", 3), ("latents-00001.safetensors", 2))
    assert (data.index.channels, data.index.sample_size) == (4, 8)
    vae = AutoencoderKL.from_pretrained(class_model / "vae")
    assert (data.index.scaling_factor, data.index.shift_factor) == (vae.config.scaling_factor, 0)
    files = ["apple/0.png", "apple/2.png", "apple/deeper/1.jpg", "sky/0.png", "sky/deeper/1.jpg"]
    for i, file in enumerate(files):
        mean, std = moments(vae, pictures / file, 16)
        item = data.picture(i)
        assert (item.shape, item.dtype) == ((2, 4, 8, 8), torch.float16)
        torch.testing.assert_close(item[0].float(), mean, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(item[1].float(), std, atol=2e-3, rtol=2e-3)
    again = AutoencoderKL.from_pretrained(tmp_path / "latents" / "vae")
    assert torch.equal(again.decoder.conv_out.weight, vae.decoder.conv_out.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["latents"]


def test_mirrored_pictures_are_items_of_their_own(pictures: Path, class_model: Path, tmp_path: Path) -> None:
    assert encode_latents(pictures, class_model / "vae", tmp_path / "twice", size=16, batch_size=5, mirror=True) == 10
    data = LatentData(str(tmp_path / "twice"))
    assert data.labels == [0, 0, 0, 1, 1] * 2
    vae = AutoencoderKL.from_pretrained(class_model / "vae")
    mean, _ = moments(vae, pictures / "sky/0.png", 16, mirrored=True)
    torch.testing.assert_close(data.picture(8)[0].float(), mean, atol=2e-3, rtol=2e-3)
    assert (data.picture(8)[0] - data.picture(3)[0]).abs().max() > 0.01


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two latents of 4 x 2 x 2 with means 1 and 3 and deviations 0.5 and 0; factors as an autoencoder may have them."""
    folder = tmp_path / "written"
    folder.mkdir()
    mean = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 4, 2, 2).half().contiguous()
    std = torch.tensor([0.5, 0.0]).view(2, 1, 1, 1).expand(2, 4, 2, 2).half().contiguous()
    save_file({"mean": mean, "std": std, "label": torch.tensor([1, 0])}, folder / "a.safetensors")
    LatentFolder(
        classes=("x", "y"), channels=4, sample_size=2, scaling_factor=0.25, shift_factor=1.0,
        shards=(("a.safetensors", 2),),
    ).write(folder)
    return folder


def test_training_draws_from_the_distribution_of_each_latent(written: Path) -> None:
    data = LatentData(str(written))
    items = torch.stack([data.picture(i) for i in [0] * 400 + [1]])
    drawn = draw_latents(items, data.index, torch.Generator().manual_seed(0))
    assert (drawn.shape, drawn.dtype) == ((401, 4, 2, 2), torch.float32)
    # (1 - 1) / 4 and its deviation 0.5 / 4 over 6,400 values; (3 - 1) / 4 exactly.
    assert drawn[:400].mean().item() == pytest.approx(0, abs=0.006)
    assert drawn[:400].std().item() == pytest.approx(0.125, rel=0.04)
    assert torch.equal(drawn[400], torch.full((4, 2, 2), 0.5))
    assert torch.equal(drawn, draw_latents(items, data.index, torch.Generator().manual_seed(0)))


def test_latents_without_a_deviation_are_taken_as_they_are(written: Path) -> None:
    tensors = load_file(written / "a.safetensors")
    del tensors["std"]
    save_file(tensors, written / "a.safetensors")
    data = LatentData(str(written))
    assert data.picture(0).shape == (1, 4, 2, 2)
    drawn = draw_latents(data.picture(0)[None], data.index, torch.Generator())
    assert torch.equal(drawn, torch.zeros(1, 4, 2, 2))


def test_a_data_set_travels_to_another_process(written: Path) -> None:
    data = LatentData(str(written))
    assert torch.equal(pickle.loads(pickle.dumps(data)).picture(1), data.picture(1))


def test_a_folder_that_is_not_what_it_says_is_one_sentence(written: Path, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ConfigError) as caught:
            LatentData(str(written))
        sentence = str(caught.value)
        assert sentence.startswith(f"data.path is {written}; ")
        assert "\n" not in sentence
        return sentence

    with pytest.raises(ConfigError, match=r"made by `python -m mezzotint\.training\.encode_latents`"):
        LatentData(str(tmp_path / "nowhere"))
    index, shard = written / "latents.json", written / "a.safetensors"
    values, data = json.loads(index.read_text()), shard.read_bytes()
    index.write_text(json.dumps(values | {"shards": [["a.safetensors", 3]]}))
    assert "holds latents [2, 4, 2, 2] and 2 labels, and its latents.json says [3, 4, 2, 2]" in refused()
    index.write_text(json.dumps(values | {"classes": ["x"]}))
    assert "holds the label 1, and the classes in its latents.json are 1" in refused()
    index.write_text(json.dumps(values | {"shards": []}))
    assert "it holds no latents" in refused()
    index.write_text(json.dumps(values | {"colour": "red"}))
    assert "latents.json cannot be read" in refused()
    index.write_text(json.dumps(values))
    shard.write_bytes(data[: len(data) // 2])
    assert "a.safetensors cannot be read" in refused()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pictures": "nowhere"}, "PICTURES is nowhere; there is no such folder."),
        ({"pictures": "empty"}, "a folder for each class with its pictures"),
        ({"pictures": "half"}, "and its folder b has none."),
        ({"pictures": "broken"}, "broken/a/1.png cannot be read as a picture"),
        ({"vae": "nowhere"}, "--vae is nowhere; it must be the folder of an AutoencoderKL, with a config.json."),
        ({"vae": "hollow"}, "--vae is hollow; it cannot be loaded: "),
        ({"size": "17"}, "--size is 17; it must be a multiple of 2"),
        ({"out": "half"}, "--out is half; it is there already"),
        ({"batch-size": "0"}, "--batch-size is 0; it must be at least 1."),
    ],
)
def test_what_cannot_be_encoded_is_one_sentence_and_leaves_nothing(
    pictures: Path, class_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str], words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "half/a", "half/b", "broken/a", "hollow"):
        Path(folder).mkdir(parents=True)
    Image.new("RGB", (16, 16)).save("half/a/0.png")
    Path("broken/a/1.png").write_bytes(b"no picture")
    Path("hollow/config.json").write_text((class_model / "vae" / "config.json").read_text())
    given = {"pictures": str(pictures), "vae": str(class_model), "out": "out", "size": "16"} | change
    options = [part for name, value in given.items() if name != "pictures" for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["encode_latents", given["pictures"], *options])
    with pytest.raises(SystemExit) as ended:
        module.main()
    sentence = str(ended.value)
    assert sentence.startswith("encode_latents: ")
    assert words in sentence
    assert "\n" not in sentence
    assert not Path("out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_the_module_runs_as_a_command(pictures: Path, class_model: Path, tmp_path: Path) -> None:
    options = ["--vae", class_model, "--size", 16, "--out", tmp_path / "o"]
    command = [sys.executable, "-m", "mezzotint.training.encode_latents", pictures, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"5 latents in {tmp_path / 'o'}\n"
