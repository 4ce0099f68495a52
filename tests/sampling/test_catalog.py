"""Models are described from their folders' JSON, before a weight is read."""

import json
import shutil
from pathlib import Path

import pytest

from mezzotint.sampling import catalog
from mezzotint.sampling.catalog import find_model, model_names, shipped_names
from mezzotint.sampling.request import RequestError


def refusal(name: str) -> str:
    with pytest.raises(RequestError) as caught:
        find_model(name)
    assert caught.value.field == "model"
    sentence = str(caught.value)
    assert sentence.startswith(f"model is {name!r}; ")
    assert sentence.endswith(".")
    return sentence


def test_a_folder_is_described(model_folder: Path) -> None:
    card = find_model(str(model_folder))
    assert card.folder == model_folder
    assert (card.config.sample_size, card.config.patch_size, card.config.num_heads) == (64, 16, 2)
    assert (card.guidance_scale, card.num_inference_steps) == (2.5, 12)


def test_a_shipped_model_is_found_by_its_name(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "SHIPPED_MODELS", model_folder.parent)
    assert shipped_names() == ["tiny"]
    assert find_model("tiny").folder == model_folder


def test_a_model_of_ones_own_is_found_by_its_name(model_folder: Path, own_models: Path) -> None:
    own_models.mkdir()
    model_folder.rename(own_models / "mine")
    assert "mine" in model_names()
    assert find_model("mine").folder == own_models / "mine"


def test_a_shipped_name_cannot_be_taken_by_another_model(
    model_folder: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "SHIPPED_MODELS", model_folder.parent)
    shutil.copytree(model_folder, own_models / "tiny")
    assert model_names() == ["tiny"]
    assert find_model("tiny").folder == model_folder


def test_the_schedule_is_read_where_there_is_one(model_folder: Path) -> None:
    assert find_model(str(model_folder)).time_shift == 1
    (model_folder / "scheduler").mkdir()
    (model_folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.5}')
    assert find_model(str(model_folder)).time_shift == 3.5


def test_an_unknown_name_is_answered_with_the_names_there_are(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "SHIPPED_MODELS", model_folder.parent)
    assert "the models here are tiny" in refusal("emojy")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "model_index.json is not there" in refusal(str(tmp_path))
    assert "is not there" in refusal(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model_index.json", "{", "cannot be read"),
        ("model_index.json", "[]", "must hold a JSON object"),
        ("model_index.json", '{"guidance_scale": "much"}', "is not one of ours"),
        ("transformer/config.json", "\0", "cannot be read"),
        ("transformer/config.json", '{"hidden_size": 10, "num_heads": 3}', "hidden_size is 10; it must be"),
        ("transformer/config.json", '{"patch_size": 0}', "patch_size is 0; it must be more than 0"),
        ("transformer/config.json", '{"patch_size": "big"}', "is not one of ours"),
        ("transformer/config.json", '{"norm": "batch"}', "norm is 'batch'; it must be one of layer, rms"),
    ],
)
def test_a_broken_model_folder_is_refused_with_what_is_wrong(
    model_folder: Path, name: str, text: str, words: str
) -> None:
    (model_folder / name).write_text(text)
    assert words in refusal(str(model_folder))


def test_a_model_folder_without_its_network_is_refused(model_folder: Path) -> None:
    (model_folder / "transformer" / "config.json").unlink()
    assert "cannot be read" in refusal(str(model_folder))


def test_keys_that_other_programs_add_are_passed_over(model_folder: Path) -> None:
    path = model_folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": "9", "colour": "red"}))
    assert find_model(str(model_folder)).config.sample_size == 64
