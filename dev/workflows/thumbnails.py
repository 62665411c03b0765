"""The images that the template browser shows: what went into a sample, and what came out of it.

The browser's cards are square and small, so the images are large and there is no text.
"""

from __future__ import annotations

from PIL import Image, ImageDraw


SIDE = 512
GROUND, ARROW = (43, 48, 56), (236, 240, 244)
RIM = 8
"""Around an image that lies over another."""
_TIMES = 4
"""Drawn larger, so that the arrows have smooth edges."""

Box = tuple[int, int, int]
"""left, top, side"""
Line = list[tuple[int, int]]

LAYOUTS: dict[int, tuple[list[Box], list[Line]]] = {
    1: ([(0, 0, 512)], []),
    2: ([(12, 12, 200), (188, 188, 312)], [[(224, 100), (344, 100), (344, 178)]]),
    3: (
        [(12, 12, 184), (316, 12, 184), (112, 212, 288)],
        [[(60, 208), (60, 356), (102, 356)], [(452, 208), (452, 356), (410, 356)]],
    ),
    4: (
        [(8, 8, 232), (272, 8, 232), (272, 272, 232), (8, 272, 232)],
        [[(230, 124), (284, 124)], [(388, 230), (388, 284)], [(282, 388), (228, 388)]],
    ),
}
"""By number of images: their places, and the lines along which the arrows go from one to the next."""


def thumbnail(images: list[Image.Image]) -> Image.Image:
    """One image, or what went in and last the result."""
    boxes, lines = LAYOUTS[len(images)]
    sheet = Image.new("RGB", (SIDE * _TIMES, SIDE * _TIMES), GROUND)
    draw = ImageDraw.Draw(sheet)
    for image, (left, top, side) in zip(images, boxes, strict=True):
        scaled = image.convert("RGB").resize((side * _TIMES, side * _TIMES), Image.Resampling.LANCZOS)
        rim = [
            (value + change * RIM) * _TIMES
            for change, value in ((-1, left), (-1, top), (1, left + side), (1, top + side))
        ]
        draw.rectangle(rim, fill=GROUND)
        sheet.paste(scaled, (left * _TIMES, top * _TIMES))
    for line in lines:
        draw_arrow(draw, line)
    return sheet.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_arrow(draw: ImageDraw.ImageDraw, line: Line, width: int = 10, head: int = 18) -> None:
    """Along a line of level and upright pieces, with a dark rim that sets it off from the images."""
    (x0, y0), (x1, y1) = line[-2:]
    dx, dy = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
    for rim, colour in ((4, GROUND), (0, ARROW)):
        points = [(x * _TIMES, y * _TIMES) for x, y in [*line[:-1], (x1 - dx * head, y1 - dy * head)]]
        draw.line(points, fill=colour, width=(width + 2 * rim) * _TIMES, joint="curve")
        reach = head + rim
        tip = (x1 + dx * rim, y1 + dy * rim)
        back = (x1 - dx * (head + rim), y1 - dy * (head + rim))
        corners = [tip, (back[0] - dy * reach, back[1] + dx * reach), (back[0] + dy * reach, back[1] - dx * reach)]
        draw.polygon([(x * _TIMES, y * _TIMES) for x, y in corners], fill=colour)
