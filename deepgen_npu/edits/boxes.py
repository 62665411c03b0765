"""Boxes of whole pixels around what a mask marks, with the context that an editor has to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .change import connected
from .filters import box_max
from .masks import reduced


MARKED = 0.1
"""Values of a mask from here on are meant (as in Inpaint Crop and Stitch)."""

CONTEXT = 2.0
"""Sides of the box around a region, in sides of the region: an editor has to see what the prompt names."""

MOST_REGIONS = 8
"""Smaller ones join their nearest."""

MOST_PARTS = 64
"""A mask with more separate parts, such as noise, is grown until they touch."""


@dataclass(frozen=True)
class Box:
    """Whole pixels of an image: rows from ``top`` to before ``bottom``, columns likewise."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    def __or__(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def shared(self, other: Box) -> int:
        """Pixels that both have."""
        rows = min(self.bottom, other.bottom) - max(self.top, other.top)
        columns = min(self.right, other.right) - max(self.left, other.left)
        return max(0, rows) * max(0, columns)

    def cut(self, image: Tensor) -> Tensor:
        """This part of an image [..., H, W]."""
        return image[..., self.top : self.bottom, self.left : self.right]


def with_context(box: Box, height: int, width: int, least: int, context: float = CONTEXT) -> Box:
    """The box with its context, inside of an image of that size.

    Args:
        box: Of a region.
        height: Of the image.
        width: Of the image.
        least: Sides that it has at least, where the image has them: then it is edited at its own resolution.
        context: See `CONTEXT`.
    """
    top, bottom = _widened(box.top, box.bottom, height, max(round(box.height * context), least))
    left, right = _widened(box.left, box.right, width, max(round(box.width * context), least))
    return Box(top, left, bottom, right)


def with_aspect(box: Box, height: int, width: int, aspect: tuple[int, int]) -> Box:
    """The smallest box around a box with the aspect ratio of a drawn image, moved into the image that it is of.

    Args:
        box: With its context.
        height: Of the image.
        width: Of the image.
        aspect: Height and width of the drawn image.

    Returns:
        A box of that aspect ratio, to a pixel; where the image is too small for that, as much as there is.
    """
    scale = max(box.height / aspect[0], box.width / aspect[1])
    rows, columns = round(aspect[0] * scale), round(aspect[1] * scale)
    top, bottom = _widened(box.top, box.bottom, height, rows)
    left, right = _widened(box.left, box.right, width, columns)
    return Box(top, left, bottom, right)


def _widened(start: int, stop: int, size: int, wanted: int) -> tuple[int, int]:
    """A part of a line that is at least as long as wanted, about the same centre if there is room."""
    length = min(max(stop - start, wanted), size)
    first = (start + stop - length) // 2
    first = min(max(first, 0), size - length)
    return first, first + length


def boxes_of(mask: Tensor, least: int, context: float = CONTEXT) -> list[Box]:
    """The boxes of the separate parts of a mask, without context, from top left to bottom right.

    Args:
        mask: [H, W] in [0, 1].
        least: As for `with_context`, like ``context``: parts whose boxes with context are much the same are one.
        context: See `CONTEXT`.
    """
    height, width = mask.shape
    marked = mask >= MARKED
    small, times = reduced(marked)
    if not bool(small.any()):
        return []
    labels = connected(small > 0)
    while int(labels.max()) > MOST_PARTS:
        small = box_max(small, 5)
        labels = connected(small > 0)

    def widen(box: Box) -> Box:
        return with_context(box, height, width, least, context)

    found = []
    for number in range(1, int(labels.max()) + 1):
        rows, columns = torch.where(labels == number)
        top, left = int(rows.min()) * times, int(columns.min()) * times
        bottom = min(height, (int(rows.max()) + 1) * times)
        right = min(width, (int(columns.max()) + 1) * times)
        box = tight(marked, Box(top, left, bottom, right))
        assert box is not None
        found.append(box)
    return sorted(_joined(found, widen), key=lambda box: (box.top, box.left))


def tight(marked: Tensor, box: Box) -> Box | None:
    """The box of what is marked, booleans [H, W], within a box; None if nothing is."""
    part = box.cut(marked)
    rows, columns = torch.where(part.any(1))[0], torch.where(part.any(0))[0]
    if not len(rows):
        return None
    top, left = box.top, box.left
    return Box(top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1)


def _joined(boxes: list[Box], widen: Callable[[Box], Box]) -> list[Box]:
    """Boxes whose contexts overlap by more than half of the smaller are one; and there are not too many."""
    boxes = list(boxes)
    while True:
        pair = _overlapping(boxes, widen)
        if pair is None and len(boxes) > MOST_REGIONS:
            smallest = min(range(len(boxes)), key=lambda index: boxes[index].height * boxes[index].width)
            others = [index for index in range(len(boxes)) if index != smallest]
            pair = smallest, min(others, key=lambda index: _distance(boxes[smallest], boxes[index]))
        if pair is None:
            return boxes
        one, other = (boxes[index] for index in pair)
        boxes = [box for index, box in enumerate(boxes) if index not in pair] + [one | other]


def _overlapping(boxes: list[Box], widen: Callable[[Box], Box]) -> tuple[int, int] | None:
    wide = [widen(box) for box in boxes]
    for first, one in enumerate(wide):
        for second, other in enumerate(wide[:first]):
            smaller = min(one.height * one.width, other.height * other.width)
            if one.shared(other) > smaller / 2:
                return second, first
    return None


def _distance(one: Box, other: Box) -> float:
    down = one.top + one.bottom - other.top - other.bottom
    right = one.left + one.right - other.left - other.right
    return float(down * down + right * right)
