"""Classes by number and by name, and which subject a model takes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mezzotint.dit.flops import forward_flops
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.latent_flops import latent_flops
from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.class_labels import Classes
from mezzotint.sampling.intake import accept, any_subject
from mezzotint.sampling.plan import MAX_PIXEL_STEPS
from mezzotint.sampling.request import GenerateRequest, RequestError, parse_request

NAMED = Classes(
    count=6, names={0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 4: "crane", 5: "great grey owl, owl"}
)


@pytest.mark.parametrize(
    ("label", "number"),
    [(0, 0), (5, 5), ("tench", 0), ("Tinca tinca", 0), ("tench, Tinca tinca", 0), ("  OWL ", 5), ("goldfish", 1)],
)
def test_a_class_is_found_by_its_number_and_by_each_of_its_names(label: int | str, number: int) -> None:
    assert NAMED.number(label, "m") == number


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (6, "class_label is 6; m has 6 classes, so it must be from 0 to 5."),
        (-1, "class_label is -1; m has 6 classes, so it must be from 0 to 5."),
        ("goldfisch", 'class_label is "goldfisch"; m has no class of that name; the nearest is goldfish.'),
        ("zebra", 'class_label is "zebra"; m has no class of that name, so give a number from 0 to 5.'),
        ("Crane", 'class_label is "Crane"; m has several classes of that name, so give a number: 2 and 4.'),
    ],
)
def test_a_class_that_there_is_not_is_one_sentence(label: int | str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        NAMED.number(label, "m")
    assert (str(caught.value), caught.value.field) == (sentence, "class_label")


def test_without_names_only_numbers_are_classes() -> None:
    with pytest.raises(RequestError, match=r'"owl"; m does not name its classes, so give a number from 0 to 9\.$'):
        Classes(count=10).number("owl", "m")


def test_each_class_is_offered_by_a_label_that_finds_it() -> None:
    labels = NAMED.labels()
    assert labels == ["tench", "goldfish", 2, 3, 4, "great grey owl"]
    assert [NAMED.number(label, "m") for label in labels] == list(range(6))


@pytest.mark.parametrize(
    ("count", "names", "words"),
    [(0, None, "num_classes is 0"), (3, {"3": "x"}, "names class 3; the classes are from 0 to 2"),
     (3, ["x"], "mapping"), (3, {"first": "x"}, "first")],
)
def test_names_that_do_not_fit_are_refused(count: int, names: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Classes.of(count, names)


def test_a_folder_of_diffusers_is_described(class_model: Path) -> None:
    card = find_model(str(class_model))
    assert isinstance(card.config, ClassDiTConfig)
    assert (card.sample_size, card.patch_size, card.pixels_per_value) == (16, 4, 2)
    assert (card.config.sample_size, card.config.num_layers, card.config.learn_sigma) == (8, 5, True)
    assert (card.guidance_scale, card.num_inference_steps) == (4.0, 50)
    assert card.classes is not None
    assert (card.classes.count, card.classes.names[207]) == (1000, "golden retriever")
    assert card.grid(16, 24) == (4, 6)
    with pytest.raises(RequestError, match="it draws by class labels, and a model that draws by text is needed here"):
        _ = card.text_config


def test_a_published_folder_bears_the_old_name_of_the_network(class_model: Path, tmp_path: Path) -> None:
    """As facebook/DiT-XL-2-256 has it."""
    shutil.copytree(class_model, tmp_path / "old")
    path = tmp_path / "old" / "transformer" / "config.json"
    old = {
        "_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None,
        "only_cross_attention": False, "use_linear_projection": False,
    }
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | old))
    assert find_model(str(tmp_path / "old")).config == find_model(str(class_model)).config
    path.write_text(json.dumps(config | old | {"cross_attention_dim": 768}))
    with pytest.raises(RequestError, match="cross_attention_dim is 768 and not None"):
        find_model(str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("transformer/config", {"_class_name": "PixArtTransformer2DModel"}, "holds a PixArtTransformer2DModel, and"),
        ("transformer/config", {"in_channels": 3, "out_channels": 6}, "vae has 4 latent channels, and the network"),
        ("transformer/config", {"num_embeds_ada_norm": 5}, "id2label names class 134"),
        ("scheduler/scheduler_config", {"_class_name": "DDPMScheduler"}, "scheduler is a DDPMScheduler; it must be"),
        ("scheduler/scheduler_config", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type is sde-dpmsolver"),
    ],
)
def test_a_folder_that_cannot_be_drawn_with_is_refused_with_what_is_wrong(
    class_model: Path, tmp_path: Path, name: str, change: dict[str, Any], words: str
) -> None:
    shutil.copytree(class_model, tmp_path / "broken")
    path = tmp_path / "broken" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RequestError, match=words) as caught:
        find_model(str(tmp_path / "broken"))
    assert caught.value.field == "model"


def test_a_folder_without_its_autoencoder_is_refused(class_model: Path, tmp_path: Path) -> None:
    shutil.copytree(class_model, tmp_path / "bare", ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(RequestError, match=r"vae/config\.json cannot be read"):
        find_model(str(tmp_path / "bare"))


@pytest.mark.parametrize("label", [207, "golden retriever", 0, 999])
def test_a_request_by_class_needs_no_prompt(class_model: Path, label: int | str) -> None:
    request, plan = accept({"class_label": label, "model": str(class_model)})
    assert (request.class_label, request.prompt) == (label, None)
    assert (request.width, request.height, request.guidance_scale, request.density) == (16, 16, 4.0, "full")
    assert accept(request) == (request, plan)
    assert accept(request.model_dump(mode="json"))[0] == request
    assert GenerateRequest.model_validate(request.model_dump(mode="json")) == request


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "prompt", "prompt is missing; it must be given."),
        ({"prompt": "a cat"}, "prompt", '"a cat"; MODEL draws by class labels and reads no text, so leave prompt out'),
        ({"prompt": "a cat", "class_label": 3}, "prompt", "give class_label, a number from 0 to 999, or a name."),
        ({"class_label": 3, "negative_prompt": "a cat"}, "negative_prompt", "so leave negative_prompt out"),
        ({"class_label": 1000}, "class_label", "1000; MODEL has 1,000 classes, so it must be from 0 to 999."),
        ({"class_label": "golden retreiver"}, "class_label", "the nearest is golden retriever."),
        ({"class_label": "crane"}, "class_label", "several classes of that name, so give a number: 134 and 517."),
        ({"class_label": -1}, "class_label", "-1; it must be the number of a class from 0 on, or its name."),
        ({"class_label": 2.5}, "class_label", "2.5; it must be"),
        ({"class_label": True}, "class_label", "true; it must be"),
        ({"class_label": " "}, "class_label", "class_label is empty; give the number or the name of a class."),
        ({"class_label": "a\x00b"}, "class_label", "holds a control character"),
        ({"class_label": 1, "width": 18}, "width", "a multiple of 4, such as 16 or 20"),
        ({"class_label": 1, "density": "fast"}, "density", "has no segments"),
        ({"class_label": 1, "width": 1024, "height": 1024, "num_inference_steps": 250, "num_images": 16},
         "num_inference_steps", f"at most {MAX_PIXEL_STEPS:,} is allowed"),
    ],
)
def test_what_a_model_of_classes_does_not_take_is_refused(
    class_model: Path, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        accept({"model": str(class_model), **fields})
    sentence = str(caught.value).replace(str(class_model), "MODEL")
    assert caught.value.field == field
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_model_of_text_takes_no_class(model_folder: Path) -> None:
    for fields in ({"class_label": 3}, {"class_label": "cat", "prompt": "a cat"}):
        with pytest.raises(RequestError, match="draws by text, so leave class_label out and give a prompt") as caught:
            accept({"model": str(model_folder), **fields})
        assert caught.value.field == "class_label"


def test_a_network_without_a_label_for_no_class_takes_no_guidance(cut_class_model: Path, tmp_path: Path) -> None:
    shutil.copytree(cut_class_model, tmp_path / "plain")
    path = tmp_path / "plain" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"null_class": False}))
    model = str(tmp_path / "plain")
    assert accept({"class_label": 3, "model": model})[0].guidance_scale == 1
    with pytest.raises(RequestError, match=r"guidance_scale is 2; .* no class, so it must be 1\.$"):
        accept({"class_label": 3, "model": model, "guidance_scale": 2})


def test_the_price_is_that_of_the_networks_passes_on_the_grids_of_each_step(cut_class_model: Path) -> None:
    card = find_model(str(cut_class_model))
    assert isinstance(card.config, ClassDiTConfig)
    request = {"model": str(cut_class_model), "density": "0.3-0.75", "num_inference_steps": 4, "num_images": 3}
    _, plan = accept(request | any_subject(card))
    assert [step.grid for step in plan.steps] == [(4, 4)] * 4
    assert [step.sparse_grid for step in plan.steps] == [(2, 2), (2, 2), (3, 3), (3, 3)]
    expected = [latent_flops(card.config, (4, 4), step.sparse_grid) for step in plan.steps]
    assert plan.flops == 3 * 2 * sum(expected)
    assert expected[0] < expected[3]
    full = accept(request | any_subject(card) | {"density": None, "guidance_scale": 1})[1]
    assert full.flops == 3 * 4 * latent_flops(card.config, (4, 4), (4, 4))


def test_what_stands_for_any_subject_is_what_the_model_takes(class_model: Path, model_folder: Path) -> None:
    for folder in (class_model, model_folder):
        accept(any_subject(find_model(str(folder))) | {"model": str(folder)})
    card = find_model(str(model_folder))
    assert accept({"model": str(model_folder), "prompt": "a"})[1].steps[0].flops == 2 * forward_flops(
        card.text_config, (4, 4)
    )


def test_neither_a_prompt_nor_a_class_is_the_sentence_of_the_prompt() -> None:
    for raw in ({}, {"class_label": None}, {"model": "x"}):
        with pytest.raises(RequestError, match=r"^prompt is missing; it must be given\.$"):
            parse_request(raw)
    with pytest.raises(RequestError, match=r"^prompt is null; it must be text\.$"):
        parse_request({"prompt": None, "class_label": None})
