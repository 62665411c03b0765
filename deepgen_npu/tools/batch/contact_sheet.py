"""Many images of a batch on one, to be looked at. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...files import naming, replacing
from ...image_files import encoded, open_image


TILE = 192
"""Side of an image in pixels: 100 of them on 2000 x 2220."""

CAPTION = 22
"""Height of the line below it, in pixels."""

GAP = 8
GROUND, INK = (24, 24, 24), (200, 200, 200)


def save_contact_sheet(target: Path, images: Sequence[tuple[str, Path]]) -> None:
    """Draw images row by row, each with its name, on a grid as square as it can be.

    Args:
        target: A JPEG, replaced as a whole.
        images: Name and file of each; at least one. One that cannot be read stays an empty tile.

    Raises:
        OSError: When it cannot be written.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step_x, step_y = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (name, path) in enumerate(images):
        left, top = GAP + number % columns * step_x, GAP + number // columns * step_y
        try:
            tile = open_image(path)
        except ValueError as error:
            pen.text((left + 4, top + 4), _drawable(str(error)[:24]), INK, font)
        else:
            tile = ImageOps.contain(tile, (TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        pen.text((left, top + TILE + 3), _shortened(_drawable(name), pen, font), INK, font)
    with naming(target), replacing(target) as unfinished:
        unfinished.write_bytes(encoded(sheet, "JPEG", {}))


def _drawable(text: str) -> str:
    """What Pillow's own font can draw of a text: Latin letters."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text that is no wider than its tile: the end tells numbered names apart, so the middle goes."""
    if pen.textlength(text, font) <= TILE:
        return text
    for length in range(len(text) - 2, 0, -1):
        shorter = f"{text[: length // 2]}…{text[-(length - length // 2) :]}"
        if pen.textlength(shorter, font) <= TILE:
            return shorter
    return ""
