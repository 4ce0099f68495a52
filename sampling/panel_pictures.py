"""Pictures onto a canvas of panels, the mask of what is still to be drawn, and a drawn canvas into its panels."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mezzotint.sampling.panels import Canvas


def compose(canvas: Canvas, pictures: Mapping[int, Image.Image]) -> Image.Image:
    """An RGB canvas with a picture on each numbered panel, and grey on the others.

    A picture of another size is scaled until it covers its panel, and what hangs over is cut off evenly; one of the
    panel's size keeps every pixel. What is transparent becomes white. Raises ValueError for a panel that there is not.
    """
    composed = Image.new("RGB", (canvas.width, canvas.height), (128, 128, 128))
    for panel in _checked(canvas, pictures):
        box = canvas.boxes[panel]
        composed.paste(_fitted(pictures[panel], (canvas.panel_width, canvas.panel_height)), (box.left, box.top))
    return composed


def split(canvas: Canvas, picture: Image.Image) -> list[Image.Image]:
    """The panels of a picture of the canvas's size. Raises ValueError for another size."""
    if picture.size != (canvas.width, canvas.height):
        raise ValueError(f"the picture is {picture.width} x {picture.height}; it must be {canvas.width} x "
                         f"{canvas.height} as its canvas.")
    return [picture.crop(box) for box in canvas.boxes]


def drawn_mask(canvas: Canvas, fixed: Collection[int], pixels_per_value: int = 1) -> Tensor:
    """1 where a panel is to be drawn, 0 on the fixed panels: fp32 [1, height, width], of latents where a value stands
    for pixels_per_value pixels a side.

    Raises ValueError for a panel that there is not, and where an edge of a panel does not fall between values.
    """
    for name, side in (("width", canvas.panel_width), ("height", canvas.panel_height)):
        if side % pixels_per_value:
            raise ValueError(f"panels have a {name} of {side}; it must be a multiple of {pixels_per_value}.")
    mask = torch.ones(1, canvas.height // pixels_per_value, canvas.width // pixels_per_value)
    for panel in _checked(canvas, fixed):
        left, top, right, bottom = (side // pixels_per_value for side in canvas.boxes[panel])
        mask[:, top:bottom, left:right] = 0
    return mask


def to_values(picture: Image.Image) -> Tensor:
    """An RGB picture as fp32 [3, height, width] in [-1, 1]; `pipeline.to_images` gives the same pixels back."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1).float().div(127.5).sub(1)


def _checked(canvas: Canvas, panels: Collection[int]) -> list[int]:
    for panel in panels:
        if not 0 <= panel < canvas.layout.num_panels:
            raise ValueError(f"panel is {panel}; the canvas has panels 0 to {canvas.layout.num_panels - 1}.")
    return sorted(set(panels))


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.mode != "RGB":
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
