"""Names and captions from a hand-made excerpt of emojibase's data."""

from typing import Any

import pytest

from mezzotint.training.emoji_captions import Emoji, captions, join_key, read_emoji

MESSAGES: dict[str, Any] = {
    "groups": [{"key": "people-body", "message": "people & body", "order": 1},
               {"key": "food-drink", "message": "food & drink", "order": 4},
               {"key": "flags", "message": "flags", "order": 9}],
    "subgroups": [{"key": "food-fruit", "message": "fruit", "order": 30},
                  {"key": "family", "message": "family", "order": 20}],
}
DATA: list[dict[str, Any]] = [
    {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "order": 900, "group": 9, "tags": ["FR", "flag"]},
    {"label": "red apple", "hexcode": "1F34E", "order": 400, "group": 4, "subgroup": 30,
     "tags": ["apple", "diet", "food", "fruit", "health", "red", "ripe"]},
    {"label": "people holding hands", "hexcode": "1F9D1-200D-1F91D-200D-1F9D1", "order": 100, "group": 1,
     "subgroup": 20, "tags": ["couple"], "skins": [
         {"label": "people holding hands: light skin tone", "hexcode": "1F9D1-1F3FB", "tone": 1},
         {"label": "people holding hands: light skin tone, dark skin tone", "hexcode": "1F9D1-1F3FB-1F3FF",
          "tone": [1, 5]},
     ]},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]


def test_emoji_come_in_their_order_each_before_its_skin_tones() -> None:
    read = list(read_emoji(DATA, MESSAGES))
    assert [(e.label, e.base_label, e.tone) for e in read] == [
        ("regional indicator A", "regional indicator A", 0),
        ("people holding hands", "people holding hands", 0),
        ("people holding hands: light skin tone", "people holding hands", 1),
        ("people holding hands: light skin tone, dark skin tone", "people holding hands", 1),
        ("red apple", "red apple", 0),
        ("flag: France", "flag: France", 0),
    ]


def test_an_emoji_carries_its_names_and_its_code_point() -> None:
    apple = next(e for e in read_emoji(DATA, MESSAGES) if e.label == "red apple")
    assert apple == Emoji(
        code_point="1f34e", label="red apple", base_label="red apple", group="food & drink", subgroup="fruit",
        tone=0, tags=("apple", "diet", "food", "fruit", "health", "red", "ripe"), takes_article=True,
    )
    toned = next(e for e in read_emoji(DATA, MESSAGES) if e.tone)
    assert (toned.tags, toned.group, toned.subgroup) == (("couple",), "people & body", "family")


def test_captions_grow_from_the_label_to_a_sentence() -> None:
    written = {e.label: captions(e) for e in read_emoji(DATA, MESSAGES)}
    # "apple" and "red" stand in the label already; three of the other five are spread over them.
    assert written["red apple"] == [
        "red apple", "a red apple", "red apple, diet, food, fruit",
        "a 3D picture of a red apple, which stands for diet, food, fruit, health, ripe",
    ]
    assert written["flag: France"] == [
        "flag: France", "flag: France", "flag: France, FR, flag",
        "a 3D picture of flag: France, which stands for FR, flag",
    ]
    assert written["regional indicator A"] == [
        "regional indicator A", "a regional indicator A", "regional indicator A",
        "a 3D picture of a regional indicator A",
    ]


@pytest.mark.parametrize(("label", "article"), [
    ("umbrella", "an"), ("Owl", "an"), ("dog face", "a"), ("3 o'clock", "a"),
])
def test_the_article_fits_the_label(label: str, article: str) -> None:
    emoji = Emoji(code_point="1", label=label, base_label=label, group="", subgroup="", tone=0, tags=(),
                  takes_article=True)
    assert captions(emoji)[1] == f"{article} {label}"


def test_tags_are_spread_over_all_of_them() -> None:
    emoji = Emoji(code_point="1", label="x", base_label="x", group="", subgroup="", tone=0,
                  tags=tuple(f"tag{i}" for i in range(9)), takes_article=True)
    assert captions(emoji)[2] == "x, tag0, tag3, tag6"
    assert captions(emoji)[3].endswith("which stands for tag0, tag1, tag2, tag3, tag4, tag5")


@pytest.mark.parametrize("name", ["2764-fe0f-200d-1f525", "2764-FE0F-200D-1F525", "2764-200d-1f525"])
def test_file_names_meet_with_or_without_the_variation_selector(name: str) -> None:
    assert join_key(name) == "2764-200d-1f525"
