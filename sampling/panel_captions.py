"""The joint caption of a set: one sentence with a marker at the start and one before each panel. No torch here.

"[MOVIE-SHOTS] a shy boy at a fair, [SCENE-1] he stands at the edge of it, [SCENE-2] ..." (arXiv 2410.23775).
"""

import re
from collections.abc import Sequence

from mezzotint.sampling.panels import PanelLayout

MAX_WORDS = 512


def joint_caption(summary: str, panels: Sequence[str], layout: PanelLayout, marker: str = "") -> str:
    """The caption of a whole set. marker: the task's own, such as [MOVIE-SHOTS]; it goes first.

    Raises ValueError where there is not one text a panel, a text is empty or holds a marker of the layout, or all of
    it is longer than MAX_WORDS words.
    """
    if len(panels) != layout.num_panels:
        raise ValueError(f"panels has {len(panels)} texts; there must be {layout.num_panels}, one a panel.")
    given = [" ".join(text.split()) for text in (summary, *panels)]
    for name, text in zip(("summary", *layout.markers), given, strict=True):
        if not text:
            raise ValueError(f"the text of {name} is empty; say in a few words what to draw.")
        held = next((each for each in layout.markers if each in text), None)
        if held is not None:
            raise ValueError(f"the text of {name} holds the marker {held}; markers are put in by the layout.")
    parts = [given[0], *(f"{mark} {text}" for mark, text in zip(layout.markers, given[1:], strict=True))]
    caption = f"{marker} {', '.join(parts)}".strip()
    check_length(caption)
    return caption


def panel_texts(caption: str, layout: PanelLayout) -> tuple[str, tuple[str, ...]]:
    """Take a joint caption apart: what comes before the first panel's marker, and the text of each panel.

    Raises ValueError where a marker of the layout is not there once, or they are not in order.
    """
    marks = "|".join(re.escape(marker) for marker in layout.markers)
    found = re.findall(marks, caption)
    if tuple(found) != layout.markers:
        raise ValueError(f"the caption has the markers {', '.join(found) or 'none'}; it must have "
                         f"{', '.join(layout.markers)} in this order, each once.")
    summary, *texts = (part.strip().rstrip(",;").strip() for part in re.split(marks, caption))
    return summary, tuple(texts)


def check_length(caption: str) -> None:
    """Raise ValueError for a caption of more than MAX_WORDS words."""
    num_words = len(caption.split())
    if num_words > MAX_WORDS:
        raise ValueError(f"the caption has {num_words} words; at most {MAX_WORDS} are allowed, so shorten it.")
