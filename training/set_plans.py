"""Which emoji make a set of pictures that belong together, and its joint caption. Nothing here reads a picture."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mezzotint.sampling.panel_captions import joint_caption
from mezzotint.sampling.panels import PanelLayout, panel_layout
from mezzotint.training.emoji_captions import Emoji, captions

FLUENT, NOTO = "fluent", "noto"
"""Whose hand drew a picture; `compose_sets.STYLES` says where they come from."""

TONES = {1: "light", 4: "medium-dark", 5: "dark"}
"""emojibase's numbers of tones. Medium-light and medium are left out: the package of Fluent pictures has them the wrong
way round."""

HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
MOONS = ("new moon", "waxing crescent moon", "first quarter moon", "waxing gibbous moon", "full moon",
         "waning gibbous moon", "last quarter moon", "waning crescent moon")
SCENES_IN_A_SEQUENCE = 4

PanelSource = tuple[str, str]
"""Style and code point of one panel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPlan:
    """subject: what is told apart between training and held-out sets."""

    subject: str
    panels: tuple[PanelSource, ...]
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SetTask:
    """A kind of set. plans: every set that some emoji allow, in their order."""

    marker: str
    layout: PanelLayout
    plans: Callable[[Sequence[Emoji]], list[SetPlan]]
    styles: tuple[str, ...] = (FLUENT,)


def _style_plans(emoji: Sequence[Emoji]) -> list[SetPlan]:
    """Each thing or living being without a skin tone, by two hands. Signs and flags look the same by all."""
    layout = panel_layout("1x2")
    named = [(one, captions(one)[1]) for one in emoji if not one.tone and one.takes_article]
    return [
        SetPlan(
            subject=one.base_label, panels=((FLUENT, one.code_point), (NOTO, one.code_point)),
            caption=joint_caption(
                f"{name} in two styles", [f"a 3D picture of {name}", f"a flat drawing of {name}"], layout,
                "[TWO-STYLES]",
            ),
        )
        for one, name in named
    ]


def _tone_plans(emoji: Sequence[Emoji]) -> list[SetPlan]:
    """Each person, or hand, in three skin tones. A panel's text stands for itself, as the base knows it, so that panels
    can be drawn one by one for comparison."""
    by_subject: dict[str, dict[int, Emoji]] = defaultdict(dict)
    for one in emoji:
        if one.tone in TONES and one.label == f"{one.base_label}: {TONES[one.tone]} skin tone":  # couples have two
            by_subject[one.base_label][one.tone] = one
    return [
        SetPlan(
            subject=subject, panels=tuple((FLUENT, found[tone].code_point) for tone in TONES),
            caption=joint_caption(
                f"{subject} in three skin tones", [found[tone].label for tone in TONES],
                panel_layout("1x3"), "[SKIN-TONES]",
            ),
        )
        for subject, found in by_subject.items() if found.keys() == TONES.keys()
    ]


def _sequence_plans(emoji: Sequence[Emoji]) -> list[SetPlan]:
    """Four clock faces an hour or half an hour apart, and four phases of the moon, from every start.

    Sets that are held out show clock faces and moons that others show, too, but never in this company.
    """
    full, half = [f"{hour} o’clock" for hour in HOURS], [f"{hour}-thirty" for hour in HOURS]
    both = [label for pair in zip(full, half, strict=True) for label in pair]
    cycles = (
        ("clock faces an hour apart", full), ("clock faces an hour apart", half),
        ("clock faces half an hour apart", both), ("phases of the moon", MOONS),
    )
    code_points = {one.label: one.code_point for one in emoji}
    return [
        SetPlan(
            subject=f"{what} from {labels[0]}", panels=tuple((FLUENT, code_points[label]) for label in labels),
            caption=joint_caption(f"four {what}", labels, panel_layout("1x4"), "[SEQUENCE]"),
        )
        for what, cycle in cycles for labels in _runs(cycle) if code_points.keys() >= set(labels)
    ]


def _runs(cycle: Sequence[str]) -> list[list[str]]:
    """As many that follow each other as a sequence has scenes, from every start, over the end to the beginning."""
    return [[cycle[(start + i) % len(cycle)] for i in range(SCENES_IN_A_SEQUENCE)] for start in range(len(cycle))]


TASKS: Mapping[str, SetTask] = {
    "styles": SetTask(marker="[TWO-STYLES]", layout=panel_layout("1x2"), plans=_style_plans, styles=(FLUENT, NOTO)),
    "tones": SetTask(marker="[SKIN-TONES]", layout=panel_layout("1x3"), plans=_tone_plans),
    "sequences": SetTask(marker="[SEQUENCE]", layout=panel_layout("1x4"), plans=_sequence_plans),
}


def choose(
    plans: Sequence[SetPlan], num_sets: int, num_held_out: int, seed: int = 0
) -> tuple[list[SetPlan], list[SetPlan]]:
    """Sets for training, and held-out sets of other subjects; the same for the same plans and seed.

    The held-out ones do not change with num_sets. Raises ValueError where there are not as many.
    """
    for name, count, least in (("sets", num_sets, 1), ("held_out", num_held_out, 0)):
        if count < least:
            raise ValueError(f"{name} is {count}; it must be at least {least}.")
    one_a_subject = {plan.subject: plan for plan in plans}
    if len(one_a_subject) < num_sets + num_held_out:
        raise ValueError(f"sets is {num_sets} and held_out {num_held_out}; there are {len(one_a_subject)} subjects, so "
                         "lower one of them.")
    order = sorted(one_a_subject.values(), key=lambda plan: _draw(plan.subject, seed))
    return order[num_held_out : num_held_out + num_sets], order[:num_held_out]


def _draw(subject: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()
