"""Layouts of segments: reading and writing, roles in order, published ones, and what is refused."""

import pytest

from mezzotint.dit.segment_layout import LAYOUTS, SegmentLayout, named_layout, roles_of

DEPTHS = {"s": 12, "b": 12, "l": 24, "xl": 28}


def test_a_layout_is_written_as_it_is_read() -> None:
    layout = SegmentLayout(pool=2, modules=4, module=(1, 3, 1, 1), top=2)
    assert str(layout) == "2 + 4x[1,3,1,1] + 2"
    assert SegmentLayout.parse(str(layout)) == layout
    assert SegmentLayout.parse(" 2+4 x [1, 3,1 ,1]+ 2 ") == layout


def test_roles_come_in_execution_order() -> None:
    roles = roles_of("1 + 2x[1,2,1,1] + 1", 12)
    module = ("generation", "sparse", "sparse", "recovery", "dense")
    assert roles == ("pool", *module, *module, "dense")
    assert roles_of(None, 3) == ("dense",) * 3


def test_the_published_layouts_are_the_authors() -> None:
    published = {name: str(preset.layout) for name, preset in LAYOUTS.items() if preset.published}
    assert published == {"dit-xl-256": "1 + 4x[1,3,1,1] + 3", "dit-xl-512": "2 + 4x[1,3,1,1] + 2"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_preset_fits_its_network(name: str) -> None:
    if name.startswith("dit-"):
        depth = DEPTHS[name.split("-")[1]]
    else:
        depth = {"latte-xl-256": 14, "emoji-256": 12}.get(name, 28)
    assert LAYOUTS[name].layout.depth == depth
    assert LAYOUTS[name].layout.pool >= 1
    assert LAYOUTS[name].layout.modules >= 2
    assert named_layout(name) is LAYOUTS[name].layout


def test_a_layout_that_does_not_add_up_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"'1 \+ 4x\[1,3,1,1\] \+ 2'; it adds up to 27 blocks, and there are 28\."):
        roles_of("1 + 4x[1,3,1,1] + 2", 28)


@pytest.mark.parametrize("written", ["", "1 + 4x[1,3,1] + 3", "1,4,3", "-1 + 4x[1,3,1,1] + 3", "1 + 4x[1,3,1,1]"])
def test_a_layout_written_otherwise_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="it must be written as pool"):
        SegmentLayout.parse(written)
    with pytest.raises(ValueError, match="it must be one of dit-xl-256,"):
        named_layout(written)


@pytest.mark.parametrize(
    ("written", "named"),
    [("1 + 0x[1,3,1,1] + 3", "at least one module"), ("1 + 2x[2,3,1,1] + 3", "one block each"),
     ("1 + 2x[1,3,0,1] + 3", "one block each")],
)
def test_a_module_without_its_parts_is_refused(written: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SegmentLayout.parse(written)
