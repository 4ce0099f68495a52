"""Panels tile their canvas, on the patch's grid, and come out of it as they went in."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mezzotint.sampling.panel_pictures import compose, drawn_mask, split, to_values
from mezzotint.sampling.panels import (
    MAX_PANELS,
    NAMED_LAYOUTS,
    Canvas,
    PanelLayout,
    canvas_of,
    nearest_canvas,
    panel_layout,
    scenes,
)
from mezzotint.sampling.pipeline import to_images

layouts = (
    st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda grid: grid[0] * grid[1] <= MAX_PANELS)
    .map(lambda grid: panel_layout(f"{grid[0]}x{grid[1]}"))
)
multiples = st.sampled_from([1, 4, 8, 16, 32])


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(layout=layouts, multiple=multiples, panel=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_boxes_tile_the_canvas_on_the_grid(layout: PanelLayout, multiple: int, panel: tuple[int, int]) -> None:
    width, height = layout.columns * panel[0] * multiple, layout.rows * panel[1] * multiple
    canvas = canvas_of(layout, width, height, multiple)
    assert (canvas.width, canvas.height) == (width, height)
    covered = np.zeros((height, width), dtype=int)
    for box in canvas.boxes:
        assert all(side % multiple == 0 for side in box)
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert (covered == 1).all()


@given(layout=layouts, multiple=multiples, width=st.integers(1, 2000), height=st.integers(1, 2000))
def test_the_nearest_canvas_is_no_further_than_half_a_unit_and_one_that_fits(
    layout: PanelLayout, multiple: int, width: int, height: int
) -> None:
    canvas = nearest_canvas(layout, width, height, multiple)
    assert canvas_of(layout, canvas.width, canvas.height, multiple) == canvas
    for asked, got, count in ((width, canvas.width, layout.columns), (height, canvas.height, layout.rows)):
        unit = count * multiple
        assert abs(asked - got) * 2 <= unit or got == unit


@given(layout=layouts, multiple=multiples, width=st.integers(-5, 600))
def test_a_width_off_the_grid_is_refused_with_sizes_that_fit(layout: PanelLayout, multiple: int, width: int) -> None:
    height, unit = layout.rows * multiple, layout.columns * multiple
    if width > 0 and width % unit == 0:
        assert canvas_of(layout, width, height, multiple).width == width
        return
    with pytest.raises(ValueError, match=rf"^width is {width}; .* multiple of {unit}, such as") as refused:
        canvas_of(layout, width, height, multiple)
    named = [int(size) for size in str(refused.value).rstrip(".").split("such as ")[1].split(" or ")]
    assert all(canvas_of(layout, size, height, multiple).width == size for size in named)


@given(layout=layouts, side=st.integers(1, 5), seed=st.integers(0, 99))
def test_what_is_composed_is_split_into_the_same_pixels(layout: PanelLayout, side: int, seed: int) -> None:
    canvas = Canvas(layout=layout, panel_width=side, panel_height=side + 1)
    pictures = {i: noise_picture(side, side + 1, seed + i) for i in range(layout.num_panels)}
    panels = split(canvas, compose(canvas, pictures))
    assert [panel.tobytes() for panel in panels] == [picture.tobytes() for picture in pictures.values()]


@given(layout=layouts, scale=st.sampled_from([1, 2, 8]), data=st.data())
def test_the_mask_is_zero_on_the_fixed_panels_alone(layout: PanelLayout, scale: int, data: st.DataObject) -> None:
    fixed = data.draw(st.sets(st.integers(0, layout.num_panels - 1)))
    canvas = Canvas(layout=layout, panel_width=3 * scale, panel_height=2 * scale)
    mask = drawn_mask(canvas, fixed, scale)
    assert mask.shape == (1, 2 * layout.rows, 3 * layout.columns)
    full = torch.nn.functional.interpolate(mask[None], scale_factor=scale)[0, 0]
    for i, box in enumerate(canvas.boxes):
        panel = full[box.top : box.bottom, box.left : box.right]
        assert (panel == (0 if i in fixed else 1)).all()


def test_every_level_of_grey_survives_the_way_to_values_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    picture = Image.fromarray(np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=-1)[None])
    assert to_images(to_values(picture)[None])[0].tobytes() == picture.tobytes()


def test_a_reference_of_another_aspect_covers_its_panel_from_the_middle() -> None:
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste(Image.new("RGB", (20, 10), "blue"), (10, 0))
    canvas = Canvas(layout=panel_layout("1x2"), panel_width=8, panel_height=8)
    left, right = split(canvas, compose(canvas, {0: wide}))
    assert left.getpixel((4, 4)) == (0, 0, 255)
    assert left.getpixel((1, 4)) == (0, 0, 255)
    assert right.getcolors() == [(64, (128, 128, 128))]


def test_transparency_becomes_white() -> None:
    canvas = Canvas(layout=panel_layout("1x1"), panel_width=2, panel_height=2)
    assert compose(canvas, {0: Image.new("RGBA", (2, 2), (9, 9, 9, 0))}).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("written", "rows", "columns", "markers"),
    [
        ("1x2", 1, 2, ("[LEFT]", "[RIGHT]")),
        ("top-bottom", 2, 1, ("[TOP]", "[BOTTOM]")),
        ("2x2", 2, 2, ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]")),
        ("storyboard", 3, 1, ("[SCENE-1]", "[SCENE-2]", "[SCENE-3]")),
        ("1x4", 1, 4, scenes(4)),
    ],
)
def test_layouts_by_name_and_by_grid(written: str, rows: int, columns: int, markers: tuple[str, ...]) -> None:
    assert panel_layout(written) == PanelLayout(rows=rows, columns=columns, markers=markers)


@pytest.mark.parametrize("written", ["", "x", "0x2", "3x0", "5x5", "99x99", "2X2", "-1x2", "1x2x3", "diptych"])
def test_a_layout_that_there_is_not_is_refused_by_name(written: str) -> None:
    with pytest.raises(ValueError, match=rf"^layout is '{written}'; it must"):
        panel_layout(written)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"markers": ("[A]",)}, "there must be 2"),
        ({"markers": ("[A]", "[A]")}, "there must be 2 different"),
        ({"markers": ("[A]", "b")}, "holds? 'b'|hold 'b'"),
        ({"rows": 0, "markers": ()}, "rows is 0"),
        ({"rows": 17, "columns": 1, "markers": scenes(17)}, "at most 16"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(change: dict[str, object], said: str) -> None:
    given_: dict[str, object] = {"rows": 1, "columns": 2, "markers": ("[A]", "[B]")}
    with pytest.raises(ValueError, match=said):
        PanelLayout(**(given_ | change))  # type: ignore[arg-type]


def test_panels_and_sizes_that_are_not_there_are_refused() -> None:
    canvas = Canvas(layout=NAMED_LAYOUTS["left-right"], panel_width=8, panel_height=8)
    for call in (lambda: drawn_mask(canvas, {2}), lambda: compose(canvas, {-1: Image.new("RGB", (8, 8))})):
        with pytest.raises(ValueError, match=r"the canvas has panels 0 to 1"):
            call()
    with pytest.raises(ValueError, match=r"is 8 x 8; it must be 16 x 8"):
        split(canvas, Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match=r"width of 8; it must be a multiple of 3"):
        drawn_mask(canvas, {0}, 3)
    with pytest.raises(ValueError, match="multiple is 0"):
        nearest_canvas(canvas.layout, 8, 8, 0)
