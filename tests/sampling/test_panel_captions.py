"""Joint captions: put together, taken apart, and refused where they would not be understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.sampling.panel_captions import joint_caption, panel_texts
from mezzotint.sampling.panels import NAMED_LAYOUTS, PanelLayout, panel_layout

words = st.lists(st.from_regex(r"[a-z<>]{1,9}", fullmatch=True), min_size=1, max_size=8).map(" ".join)


def test_the_caption_of_the_paper() -> None:
    scenes = ["<Leo> waits", "he plays", "he wins"]
    caption = joint_caption("a fair", scenes, NAMED_LAYOUTS["storyboard"], "[MOVIE-SHOTS]")
    assert caption == "[MOVIE-SHOTS] a fair, [SCENE-1] <Leo> waits, [SCENE-2] he plays, [SCENE-3] he wins"


@given(written=st.sampled_from(["1x2", "2x1", "2x2", "1x3", "3x4"]), data=st.data())
def test_what_is_put_together_comes_apart(written: str, data: st.DataObject) -> None:
    layout = panel_layout(written)
    summary, texts = data.draw(words), [data.draw(words) for _ in range(layout.num_panels)]
    assert panel_texts(joint_caption(summary, texts, layout, "[TASK]"), layout) == (f"[TASK] {summary}", tuple(texts))


def test_semicolons_of_published_captions_come_off() -> None:
    caption = "This two-part image shows cats; [LEFT] a black cat, while [RIGHT] a white cat."
    assert panel_texts(caption, panel_layout("1x2")) == (
        "This two-part image shows cats", ("a black cat, while", "a white cat.")
    )


@pytest.mark.parametrize(
    ("summary", "panels", "said"),
    [
        ("a", ["b"], "panels has 1 texts; there must be 2"),
        (" ", ["b", "c"], "the text of summary is empty"),
        ("a", ["b", ""], r"the text of \[RIGHT\] is empty"),
        ("a", ["b [RIGHT] c", "d"], r"holds the marker \[RIGHT\]"),
        ("a " * 512, ["b", "c"], "has 516 words; at most 512"),
    ],
)
def test_captions_that_would_not_be_understood_are_refused(summary: str, panels: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        joint_caption(summary, panels, panel_layout("1x2"))


@pytest.mark.parametrize("caption", ["a, [RIGHT] b, [LEFT] c", "a, [LEFT] b", "a, [LEFT] b, [RIGHT] c, [RIGHT] d"])
def test_markers_out_of_order_are_refused(caption: str) -> None:
    layout: PanelLayout = panel_layout("1x2")
    with pytest.raises(ValueError, match=r"it must have \[LEFT\], \[RIGHT\] in this order"):
        panel_texts(caption, layout)
