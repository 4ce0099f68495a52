"""Real pictures' features: from a data set, in the file that ships, and the one against the other."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from mezzotint.training.quality import FeatureExtractor, blurred
from mezzotint.training.reference import (
    BLUR_SIDE,
    SHIPPED,
    NoReferenceError,
    Reference,
    first_of_each,
    load_reference,
    measure_data,
    save_reference,
)

EMOJI = Path(__file__).parents[1] / "data" / "emoji"


@pytest.fixture(scope="module")
def extract() -> FeatureExtractor:
    return FeatureExtractor()


@pytest.fixture(scope="module")
def small(extract: FeatureExtractor) -> Reference:
    """The reference of ten pictures of nine labels: one label comes in two skin tones."""
    return measure_data(str(EMOJI), extract)


def small_pictures() -> dict[str, Image.Image]:
    """Pictures without a skin tone by label."""
    rows = [json.loads(line) for line in (EMOJI / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {r["label"]: Image.open(EMOJI / r["file_name"]) for r in rows if r["label"] == r["base_label"]}


def test_a_skin_tone_makes_no_label_of_its_own(small: Reference) -> None:
    assert len(small.labels) == 10
    assert len(small.distinct_labels) == 9
    assert small.labels.count("woman firefighter") == 2
    assert small.blurred_DF.shape == (9, 1280)


def test_the_first_picture_of_a_label_stands_for_it() -> None:
    assert first_of_each(["b", "a", "b", "c", "a"]) == [0, 1, 3]


def test_saving_and_loading_keeps_the_features_within_a_byte(small: Reference, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "features.safetensors"
    save_reference(small, path)
    loaded = load_reference(path)
    assert loaded.labels == small.labels
    assert loaded.source == str(EMOJI)
    for name in ("features_GF", "blurred_DF"):
        before, after = getattr(small, name), getattr(loaded, name)
        assert (before - after).abs().max() <= before.max() / 255
        assert cosine_similarity(before, after).min() > 0.9999
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_shipped_features_are_those_of_the_pictures(extract: FeatureExtractor) -> None:
    shipped = load_reference()
    first = dict(zip(shipped.distinct_labels, first_of_each(shipped.labels), strict=True))
    pictures = small_pictures()
    sharp = extract(list(pictures.values()))
    soft = extract([blurred(picture, BLUR_SIDE) for picture in pictures.values()])
    places = torch.tensor([shipped.distinct_labels.index(label) for label in pictures])
    assert cosine_similarity(sharp, shipped.features_GF[[first[label] for label in pictures]]).min() > 0.9999
    assert cosine_similarity(soft, shipped.blurred_DF[places]).min() > 0.9999


def test_what_ships_is_the_whole_set_and_small() -> None:
    shipped = load_reference()
    assert len(shipped.labels) > 3300
    assert len(shipped.distinct_labels) > 1800
    assert not any("skin tone" in label for label in shipped.labels)
    assert len(shipped.blurred_DF) == len(shipped.distinct_labels)
    assert "MIT" in shipped.source
    assert SHIPPED.stat().st_size < 9e6


def test_features_of_another_network_are_refused(
    small: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr("mezzotint.training.reference.FEATURES", "inception-v3")
        save_reference(small, path)
    with pytest.raises(NoReferenceError, match=r"'inception-v3'; they must be 'efficientnet"):
        load_reference(path)


def test_a_data_set_without_labels_is_refused(extract: FeatureExtractor, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "black"}))
    with pytest.raises(NoReferenceError, match="needs one named base_label or label"):
        measure_data(str(tmp_path), extract)
