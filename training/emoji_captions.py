"""Names and captions of emoji pictures, from emojibase's English data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SYMBOLS_AND_FLAGS = (8, 9)
"""Groups whose labels take no article ("flag: France")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Emoji:
    """One emoji. `base_label` is its label without the skin tone; `tone` is 0 for none, else 1 to 5."""

    code_point: str
    label: str
    base_label: str
    group: str
    subgroup: str
    tone: int
    tags: tuple[str, ...]
    takes_article: bool


def read_emoji(data: Sequence[Mapping[str, Any]], messages: Mapping[str, Any]) -> Iterator[Emoji]:
    """Every emoji of emojibase's data.json in its order, each followed by its skin tones."""
    groups = {g["order"]: g["message"] for g in messages["groups"]}
    subgroups = {g["order"]: g["message"] for g in messages["subgroups"]}
    for entry in sorted(data, key=lambda e: e.get("order", 0)):
        for variant in (entry, *entry.get("skins", ())):
            tone = variant.get("tone", 0)
            yield Emoji(
                code_point=variant["hexcode"].lower(),
                label=variant["label"],
                base_label=entry["label"],
                group=groups.get(entry.get("group"), ""),
                subgroup=subgroups.get(entry.get("subgroup"), ""),
                tone=tone[0] if isinstance(tone, list) else tone,
                tags=tuple(entry.get("tags", ())),
                takes_article=entry.get("group") not in _SYMBOLS_AND_FLAGS,
            )


def captions(emoji: Emoji) -> list[str]:
    """Captions of several lengths, shortest first: label, with an article, with three tags, a sentence."""
    label = emoji.label
    article = f"{_article(label)} {label}" if emoji.takes_article else label
    new_tags = [tag for tag in emoji.tags if tag.lower() not in label.lower().split()]
    spread = new_tags[:: max(1, len(new_tags) // 3)][:3]
    sentence = f"a 3D picture of {article}"
    if new_tags:
        sentence += f", which stands for {', '.join(new_tags[:6])}"
    return [label, article, ", ".join([label, *spread]), sentence]


def _article(label: str) -> str:
    return "an" if label[:1].lower() in "aeiou" else "a"


def join_key(code_point: str) -> str:
    """Code points with the variation selector left out, which file names carry or not."""
    return code_point.lower().replace("-fe0f", "")
