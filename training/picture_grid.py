"""A contact sheet: many pictures on one, with their captions under them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
BACKGROUND = "white"
INK = "black"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def picture_grid(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    tile: int = 128,
    caption_lines: int = 2,
) -> Image.Image:
    """Lay pictures out in rows, left to right.

    images: at least one, of any sizes; each is fitted into a square of `tile` pixels.
    captions: one a picture, or None; wrapped to at most `caption_lines`, with an ellipsis where more is lost.
    Returns an RGB picture. Raises ValueError when the counts or the sizes make no sheet.
    """
    _check(images, captions, columns, tile)
    font = ImageFont.load_default(max(10, tile // 11))
    line = _line_height(font)
    cell_width, cell_height = tile + MARGIN, tile + MARGIN + (caption_lines * line if captions else 0)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = MARGIN + i % columns * cell_width, MARGIN + i // columns * cell_height
        _paste_fitted(sheet, image, left, top, tile)
        for n, text in enumerate(wrap(captions[i], font, tile, caption_lines) if captions else ()):
            draw.text((left + tile / 2, top + tile + n * line), text, font=font, fill=INK, anchor="ma")
    return sheet


def wrap(text: str, font: Font, width: int, max_lines: int = 2) -> list[str]:
    """Break a caption between words into lines of at most `width` pixels.

    A word wider than a line, and whatever does not fit into `max_lines`, ends in an ellipsis.
    """
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < max_lines:
        count = _words_that_fit(words, font, width)
        lines.append(_shortened(" ".join(words[:count]), font, width))
        words = words[count:]
    if words:
        lines[-1] = _shortened(f"{lines[-1].removesuffix('…')} {words[0]}…", font, width)
    return lines


def _words_that_fit(words: list[str], font: Font, width: int) -> int:
    count = 1
    while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    return count


def _shortened(text: str, font: Font, width: int) -> str:
    """The text, cut from its end until it fits with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    body = text.removesuffix("…")
    while body and font.getlength(body + "…") > width:
        body = body[:-1]
    return body.rstrip() + "…"


def _paste_fitted(sheet: Image.Image, image: Image.Image, left: int, top: int, tile: int) -> None:
    """Put a picture into the middle of its square, at the largest size that keeps its shape."""
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (left + (tile - size[0]) // 2, top + (tile - size[1]) // 2))


def _line_height(font: Font) -> int:
    top, bottom = font.getbbox("Ágy|")[1::2]
    return round(bottom - top) + 3


def _check(images: Sequence[Image.Image], captions: Sequence[str] | None, columns: int, tile: int) -> None:
    if not images:
        raise ValueError("images is empty; a contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions has {len(captions)} texts for {len(images)} images; give one for each.")
    if columns < 1 or tile < 16:
        raise ValueError(f"columns is {columns} and tile {tile}; columns starts at 1 and tile at 16 pixels.")
