"""Pictures and captions read from real folders; the draws against the probabilities that were asked for."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import mezzotint.training.data as data_module
from mezzotint.sampling.text import EncodedText
from mezzotint.training.config import ConfigError, DataConfig
from mezzotint.training.data import PictureData, StepSampler, TextTable, draw_captions, load_picture
from mezzotint.training.randomness import generator_for

MakeFolder = Callable[[Path, list[tuple[Image.Image, dict[str, Any]]]], Path]


class LengthEncoder:
    """Stands for a text encoder: tokens that tell a caption's length, and a count of the captions it was given."""

    name = "length"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_many(self, prompts: Sequence[str], max_tokens: int) -> EncodedText:
        self.encoded += prompts
        lengths = torch.tensor([len(p) for p in prompts])
        return EncodedText(
            tokens=lengths[:, None, None].expand(-1, max_tokens, 4).float(),
            mask=torch.ones(len(prompts), max_tokens, dtype=torch.bool),
            pooled=-lengths[:, None].expand(-1, 4).float(), lengths=lengths.tolist(),
        )


def test_an_imagefolder_of_odd_pictures_is_read(tmp_path: Path, make_imagefolder: MakeFolder) -> None:
    half_clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half_clear.paste((0, 0, 255, 255), (0, 0, 16, 8))
    palette = Image.new("RGB", (16, 16), (10, 200, 30)).quantize(4)
    wide = Image.new("RGB", (64, 16), "black")
    wide.paste((255, 255, 255), (24, 0, 40, 16))  # the middle square
    folder = make_imagefolder(tmp_path / "set", [
        (half_clear, {"caption": "half"}), (palette, {"caption": "green"}), (wide, {"caption": "wide"}),
        (Image.new("L", (16, 16), 77), {"caption": "grey"}),
    ])
    data = PictureData(DataConfig(path=str(folder)), 16)
    assert len(data) == 4
    assert data.captions == [["half"], ["green"], ["wide"], ["grey"]]
    assert data.labels == ["half", "green", "wide", "grey"]
    half, green, middle, grey = (data.picture(i) for i in range(4))
    assert all(p.shape == (3, 16, 16) and p.dtype == torch.uint8 for p in (half, green, middle, grey))
    assert half[:, 2, 8].tolist() == [0, 0, 255]
    assert half[:, 13, 8].tolist() == [255, 255, 255]
    assert (green.float() - torch.tensor([10.0, 200, 30])[:, None, None]).abs().max() <= 1
    assert middle[:, 8, 4:12].unique().tolist() == [255]
    assert grey.unique().tolist() == [77]


def test_transparency_is_laid_on_white_by_its_alpha() -> None:
    picture = load_picture(Image.new("RGBA", (4, 4), (100, 0, 200, 64)), 4)
    expected = [round(c * 64 / 255 + 255 * 191 / 255) for c in (100, 0, 200)]
    assert picture[:, 0, 0].tolist() == pytest.approx(expected, abs=1)


def test_a_saved_set_with_several_captions_and_base_labels_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(
        {
            "image": [{"bytes": _png((i, 0, 0)), "path": None} for i in range(3)],
            "captions": [["a", "a long one"], ["b"], ["c", "cc", "ccc"]],
            "label": ["x: light", "x: dark", "y"], "base_label": ["x", "x", "y"],
        },
        features=datasets.Features({
            "image": datasets.Image(), "captions": datasets.List(datasets.Value("string")),
            "label": datasets.Value("string"), "base_label": datasets.Value("string"),
        }),
    ).save_to_disk(tmp_path / "saved")
    data = PictureData(DataConfig(path=str(tmp_path / "saved")), 8)
    assert data.captions == [["a", "a long one"], ["b"], ["c", "cc", "ccc"]]
    assert data.labels == ["x", "x", "y"]
    assert [int(data.picture(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]


def _png(colour: tuple[int, int, int]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def test_pictures_are_the_same_kept_in_memory_or_decoded_at_each_use(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = PictureData(DataConfig(path=str(tiny_data)), 32)
    decoded: list[int] = []
    decode = PictureData._decode
    monkeypatch.setattr(PictureData, "_decode", lambda self, i: decoded.append(i) or decode(self, i))
    first = [kept.picture(3), kept.picture(3)]
    monkeypatch.setattr(data_module, "CACHE_BYTES", 10 * 3 * 32 * 32 - 1)
    too_large = PictureData(DataConfig(path=str(tiny_data)), 32)
    assert decoded == [3]
    assert all(torch.equal(first[0], p) for p in (first[1], too_large.picture(3), too_large.picture(3)))
    assert decoded == [3, 3, 3]


@pytest.mark.parametrize("balance", [0.0, 0.7, 1.0])
def test_pictures_are_drawn_as_often_as_balance_says(
    tmp_path: Path, make_imagefolder: MakeFolder, balance: float
) -> None:
    counts = {"rare": 1, "some": 3, "many": 8}
    grey = Image.new("RGB", (8, 8))
    folder = make_imagefolder(
        tmp_path / "set", [(grey, {"text": f"{label} {i}", "label": label}) for label, n in counts.items()
                           for i in range(n)],
    )
    data = PictureData(DataConfig(path=str(folder)), 8)
    sampler = StepSampler(data.draw_weights(balance), 100, seed=4)
    steps = 200
    drawn = Counter(data.labels[i] for step in range(steps) for i in sampler.indices(step))
    shares = {label: n * n**-balance for label, n in counts.items()}
    total = steps * 100
    expected = {label: total * share / sum(shares.values()) for label, share in shares.items()}
    chi_square = sum((drawn[label] - expected[label]) ** 2 / expected[label] for label in counts)
    assert chi_square < 13.8  # 2 degrees of freedom: passed by chance 999 times in 1,000
    within = Counter(i for step in range(steps) for i in sampler.indices(step) if data.labels[i] == "many")
    assert max(within.values()) - min(within.values()) < 6 * math.sqrt(expected["many"] / 8)


def test_two_processes_share_the_batch_of_one() -> None:
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    whole = StepSampler(weights, 8, seed=1)
    shares = [StepSampler(weights, 8, seed=1, rank=rank, num_ranks=2) for rank in range(2)]
    for step in (0, 1, 77):
        parts = [share.indices(step) for share in shares]
        assert [len(p) for p in parts] == [4, 4]
        assert sorted(parts[0] + parts[1]) == sorted(whole.indices(step))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sampler = StepSampler(torch.ones(1000), 16, seed=1)
    later = sampler.indices(9)
    assert sampler.indices(3) == StepSampler(torch.ones(1000), 16, seed=1).indices(3) != later
    assert StepSampler(torch.ones(1000), 16, seed=2).indices(9) != later


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 9; it must be a multiple of the 2 processes"):
        StepSampler(torch.ones(5), 9, seed=0, rank=0, num_ranks=2)


def test_captions_are_drawn_by_their_weights_and_dropped_at_the_rate(tmp_path: Path) -> None:
    captions = [["one", "two", "three", "four"]] * 20_000
    table = TextTable(captions[:1], LengthEncoder(), 2, tmp_path / "text.safetensors")  # type: ignore[arg-type]
    config = DataConfig(caption_weights=(0.5, 0.3, 0.1), caption_dropout=0.2)
    numbers = draw_captions(captions, table, config, generator_for(0, 0)).tolist()
    drawn = Counter(numbers)
    assert drawn[-1] / 20_000 == pytest.approx(0.2, abs=0.012)
    # The last weight also stands for the fourth caption.
    for caption, share in (("one", 0.5), ("two", 0.3), ("three", 0.1), ("four", 0.1)):
        assert drawn[table.numbers[caption]] / 16_000 == pytest.approx(share, abs=0.015)
    assert numbers == draw_captions(captions, table, config, generator_for(0, 0)).tolist()


def test_a_picture_with_fewer_captions_than_weights_keeps_its_last_one(tmp_path: Path) -> None:
    table = TextTable([["only"]], LengthEncoder(), 2, tmp_path / "text.safetensors")  # type: ignore[arg-type]
    config = DataConfig(caption_weights=(0.0, 1.0), caption_dropout=0.0)
    assert draw_captions([["only"]] * 5, table, config, generator_for(0)).tolist() == [table.numbers["only"]] * 5


def test_a_dropped_prompt_is_zeros(tmp_path: Path) -> None:
    table = TextTable([["ab", "abc"]], LengthEncoder(), 2, tmp_path / "text.safetensors")  # type: ignore[arg-type]
    tokens, pooled, mask = table.batch(torch.tensor([table.numbers["abc"], -1, table.numbers["ab"]]))
    assert tokens[:, :, 0].tolist() == [[3, 3], [0, 0], [2, 2]]
    assert pooled[:, 0].tolist() == [-3, 0, -2]
    assert mask.tolist() == [[True, True], [False, False], [True, True]]


def test_encoded_captions_are_taken_up_until_they_change(tmp_path: Path) -> None:
    cache = tmp_path / "text.safetensors"

    def encoded(captions: list[list[str]], max_tokens: int = 2, name: str = "length") -> list[str]:
        encoder = LengthEncoder()
        encoder.name = name
        table = TextTable(captions, encoder, max_tokens, cache)  # type: ignore[arg-type]
        for caption, number in table.numbers.items():
            assert table.pooled[number].tolist() == [-len(caption)] * 4
            assert table.tokens[number].shape == (max_tokens, 4)
        return encoder.encoded

    assert encoded([["a", "bb"], ["bb", "ccc"]]) == ["a", "bb", "ccc"]  # each caption once
    assert encoded([["a", "bb"], ["bb", "ccc"]]) == []
    assert encoded([["a", "bb"], ["bb", "dddd"]]) == ["a", "bb", "dddd"]
    assert encoded([["a", "bb"], ["bb", "dddd"]], max_tokens=3) == ["a", "bb", "dddd"]
    assert encoded([["a", "bb"], ["bb", "dddd"]], max_tokens=3, name="other") == ["a", "bb", "dddd"]
    cache.write_bytes(cache.read_bytes()[:-5])
    assert encoded([["a", "bb"], ["bb", "dddd"]], max_tokens=3, name="other") == ["a", "bb", "dddd"]
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


def refused(path: object) -> str:
    with pytest.raises(ConfigError) as raised:
        PictureData(DataConfig(path=str(path)), 8)
    assert str(path) in str(raised.value) or str(raised.value).startswith("data.path: picture")
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("path", ["/nowhere", "/nowhere/at/all", "nothing", "./a/b", "data/emoji-that-is-not-there"])
def test_a_missing_folder_is_named_with_what_it_must_be(path: str) -> None:
    assert "folder of pictures with metadata.jsonl" in refused(path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    assert "it must be a folder made by `datasets`" in refused(tmp_path)
    assert "it must be a folder made by `datasets`" in refused(tmp_path / "letter.txt")


def test_pictures_without_captions_are_refused(tmp_path: Path, make_imagefolder: MakeFolder) -> None:
    grey = Image.new("RGB", (8, 8))
    bare = make_imagefolder(tmp_path / "bare", [(grey, {"title": "x"})])
    assert "its columns are image, title" in refused(bare)
    holey = make_imagefolder(tmp_path / "holey", [(grey, {"text": "x"}), (grey, {"text": ""})])
    assert refused(holey).startswith("data.path: picture 1 of the set has no caption")


def test_a_metadata_file_that_is_broken_is_refused(tmp_path: Path, make_imagefolder: MakeFolder) -> None:
    folder = make_imagefolder(tmp_path / "set", [(Image.new("RGB", (8, 8)), {"text": "x"})])
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "te')
    assert "it cannot be opened" in refused(folder)


def test_a_picture_that_metadata_names_and_is_not_there_is_named(tmp_path: Path, make_imagefolder: MakeFolder) -> None:
    folder = make_imagefolder(tmp_path / "set", [(Image.new("RGB", (8, 8)), {"text": "x"})])
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "lost.png", "text": "x"}) + "\n")
    with pytest.raises(ConfigError, match=r"picture 0 of the set cannot be read .*lost\.png"):
        PictureData(DataConfig(path=str(folder)), 8).picture(0)


def test_a_saved_set_without_pictures_or_with_two_splits_is_refused(tmp_path: Path) -> None:
    texts = datasets.Dataset.from_dict({"text": ["x"]})
    texts.save_to_disk(tmp_path / "texts")
    assert "its columns are text" in refused(tmp_path / "texts")
    datasets.Dataset.from_dict({"text": ["x"], "image": ["a.png"]}).save_to_disk(tmp_path / "names")
    assert "its column image holds Value('string'), not pictures" in refused(tmp_path / "names")
    datasets.DatasetDict({"train": texts, "test": texts}).save_to_disk(tmp_path / "splits")
    assert "give the folder" in refused(tmp_path / "splits") or "must be a folder" in refused(tmp_path / "splits")
    (tmp_path / "texts" / "data-00000-of-00001.arrow").unlink()
    assert "it cannot be opened" in refused(tmp_path / "texts")


def test_a_broken_picture_is_named(tmp_path: Path, make_imagefolder: MakeFolder) -> None:
    grey = Image.new("RGB", (64, 64))
    folder = make_imagefolder(tmp_path / "set", [(grey, {"text": "x"}), (grey, {"text": "y"})])
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:60])
    data = PictureData(DataConfig(path=str(folder)), 8)
    assert data.picture(0).shape == (3, 8, 8)
    with pytest.raises(ConfigError, match="picture 1 of the set cannot be read"):
        data.picture(1)
