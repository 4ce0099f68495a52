"""Where the panels of a set lie on one canvas, and by which markers a caption names them. No torch, no pictures here.

In-Context LoRA (arXiv 2410.23775) joins the pictures of a set to one picture that the model draws at once. Panels are
numbered row by row.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

MAX_PANELS = 16


class Box(NamedTuple):
    """Pixels from left to right and from top to bottom, the last two not included, as PIL has it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelLayout:
    """Rows and columns of panels of one size, and a caption's marker for each panel."""

    rows: int
    columns: int
    markers: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, count in (("rows", self.rows), ("columns", self.columns)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1.")
        if self.num_panels > MAX_PANELS:
            raise ValueError(f"a layout of {self.rows} x {self.columns} has {self.num_panels} panels; at most "
                             f"{MAX_PANELS} are allowed.")
        if len(set(self.markers)) != self.num_panels or len(self.markers) != self.num_panels:
            raise ValueError(f"markers are {', '.join(self.markers) or 'none'}; there must be {self.num_panels} "
                             "different ones, one a panel.")
        for marker in self.markers:
            if not _MARKER.fullmatch(marker):
                raise ValueError(f"markers hold {marker!r}; a marker is capitals, digits and - in brackets, such as "
                                 "[LEFT].")

    @property
    def num_panels(self) -> int:
        return self.rows * self.columns


_MARKER = re.compile(r"\[[A-Z0-9]+(-[A-Z0-9]+)*\]")
_GRID = re.compile(r"([0-9]{1,2})x([0-9]{1,2})")


def scenes(count: int) -> tuple[str, ...]:
    """[SCENE-1], [SCENE-2], ..."""
    return tuple(f"[SCENE-{i + 1}]" for i in range(count))


_PLACES = {
    (1, 2): ("[LEFT]", "[RIGHT]"),
    (2, 1): ("[TOP]", "[BOTTOM]"),
    (2, 2): ("[TOP-LEFT]", "[TOP-RIGHT]", "[BOTTOM-LEFT]", "[BOTTOM-RIGHT]"),
}
NAMED_LAYOUTS = {
    "left-right": PanelLayout(rows=1, columns=2, markers=_PLACES[1, 2]),
    "top-bottom": PanelLayout(rows=2, columns=1, markers=_PLACES[2, 1]),
    "four-panel": PanelLayout(rows=2, columns=2, markers=_PLACES[2, 2]),
    "storyboard": PanelLayout(rows=3, columns=1, markers=scenes(3)),
}
"""The layouts of the published adapters."""


def panel_layout(written: str) -> PanelLayout:
    """A layout by its name in NAMED_LAYOUTS, or as rows x columns: "1x3", "4x1", "2x2".

    Markers of 1x2, 2x1 and 2x2 say where a panel is; all others count scenes. Raises ValueError naming the value.
    """
    if written in NAMED_LAYOUTS:
        return NAMED_LAYOUTS[written]
    match = _GRID.fullmatch(written)
    if match is None:
        raise ValueError(f"layout is {written!r}; it must be {', '.join(NAMED_LAYOUTS)}, or rows x columns such as "
                         "1x3.")
    rows, columns = int(match[1]), int(match[2])
    if not 1 <= rows * columns <= MAX_PANELS:
        raise ValueError(f"layout is {written!r}; it must have 1 to {MAX_PANELS} panels.")
    return PanelLayout(rows=rows, columns=columns, markers=_PLACES.get((rows, columns), scenes(rows * columns)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """A layout in pixels."""

    layout: PanelLayout
    panel_width: int
    panel_height: int

    @property
    def width(self) -> int:
        return self.layout.columns * self.panel_width

    @property
    def height(self) -> int:
        return self.layout.rows * self.panel_height

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where each panel lies; together they are the whole canvas, and none lies on another."""
        w, h = self.panel_width, self.panel_height
        places = product(range(self.layout.rows), range(self.layout.columns))
        return tuple(Box(column * w, row * h, (column + 1) * w, (row + 1) * h) for row, column in places)


def canvas_of(layout: PanelLayout, width: int, height: int, multiple: int) -> Canvas:
    """The canvas of exactly width x height pixels.

    multiple: what the edge of a panel must fall on: the patch in pixels, for latents times the stride of the
    autoencoder (16 for FLUX). Raises ValueError naming the side, with the nearest sizes that do.
    """
    _check_multiple(multiple)
    sides = {}
    for name, side, count in (("width", width, layout.columns), ("height", height, layout.rows)):
        unit = multiple * count
        if side <= 0 or side % unit:
            below, above = max(side, 0) // unit * unit, (max(side, 0) // unit + 1) * unit
            raise ValueError(f"{name} is {side}; for {count} panels whose edges fall on multiples of {multiple} it "
                             f"must be a multiple of {unit}, such as {f'{below} or {above}' if below else above}.")
        sides[name] = side // count
    return Canvas(layout=layout, panel_width=sides["width"], panel_height=sides["height"])


def nearest_canvas(layout: PanelLayout, width: int, height: int, multiple: int) -> Canvas:
    """The canvas nearest to width x height whose panels' edges fall on `multiple`; see `canvas_of`."""
    _check_multiple(multiple)
    for name, side in (("width", width), ("height", height)):
        if side <= 0:
            raise ValueError(f"{name} is {side}; it must be a positive number of pixels.")
    return Canvas(
        layout=layout, panel_width=_nearest(width, layout.columns * multiple) * multiple,
        panel_height=_nearest(height, layout.rows * multiple) * multiple,
    )


def _nearest(side: int, unit: int) -> int:
    """How many units a side is, rounded (a half up) to at least one."""
    return max(1, (2 * side + unit) // (2 * unit))


def _check_multiple(multiple: int) -> None:
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1.")
