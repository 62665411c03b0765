"""Parts of an image that are edited by themselves, and what is shown of them to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from ..images import to_pil
from .boxes import CONTEXT, MARKED, Box, boxes_of, tight, with_aspect, with_context
from .fitting import Fit


if TYPE_CHECKING:
    from ..sizes import SizeRules


@dataclass(frozen=True)
class Region:
    """A part of an image, or all of it, that is edited by itself.

    Attributes:
        box: What is cut out of the image.
        fit: Where that lies in the drawn image.
        marked: What of it may be changed: the box of a part of a mask.
        squares: Whether pixels of the model are shown as squares, not smoothly; for models with few of them.
    """

    box: Box
    fit: Fit
    marked: Box
    squares: bool = False

    @classmethod
    def whole(cls, height: int, width: int, fit: Fit, squares: bool = False) -> Region:
        """All of an image of that size, in pixels."""
        box = Box(0, 0, height, width)
        return cls(box, fit, box, squares)

    def shown(self, image: Tensor) -> Image.Image:
        """What the model sees of an image [C, H, W] in [0, 1]: RGB of the size that is drawn."""
        return self.fit.apply(to_pil(self.box.cut(image)))

    def mask(self, mask: Tensor) -> Tensor:
        """A mask [H, W] of the image in the box, without what belongs to other regions."""
        own, part, box = mask.new_zeros(self.box.height, self.box.width), self.marked, self.box
        rows = slice(part.top - box.top, part.bottom - box.top)
        own[rows, part.left - box.left : part.right - box.left] = part.cut(mask)
        return own


def plan(
    mask: Tensor,
    sizes: SizeRules,
    size: tuple[int, int] | None = None,
    pixel: int = 1,
    context: float = CONTEXT,
) -> list[Region]:
    """The regions of a mask, from top left to bottom right; each is edited at about the area of the training.

    A region with its context has at least as many pixels of the image as are drawn, where the image has them: then
    it is edited without any resampling.

    Args:
        mask: [H, W] in [0, 1].
        sizes: Of the checkpoint.
        size: (height, width) to draw each at; None for the one that suits it best.
        pixel: Side of the square that shows one pixel of the model.
        context: See `boxes.CONTEXT`.
    """
    height, width = mask.shape
    least = sizes.trained_side * pixel
    found = []
    for marked in boxes_of(mask, least, context):
        box = with_context(marked, height, width, least, context)
        drawn = size or sizes.least_padding(box.height, box.width)
        box = with_aspect(box, height, width, drawn)
        found.append(Region(box, Fit.padded(box.height, box.width, *drawn), marked, squares=pixel > 1))
    return found


def plan_one(masks: Tensor, sizes: SizeRules, context: float = CONTEXT) -> list[Region]:
    """One region for each of several masks, around all that it marks; all are drawn at the same size.

    Args:
        masks: [b, H, W] in [0, 1]. An empty one stands for all of the image.
        sizes: Of the checkpoint.
        context: See `boxes.CONTEXT`.
    """
    height, width = masks.shape[-2:]
    whole = Box(0, 0, height, width)
    marked = [tight(mask >= MARKED, whole) or whole for mask in masks]
    boxes = [with_context(one, height, width, sizes.trained_side, context) for one in marked]
    drawn = sizes.least_padding(max(box.height for box in boxes), max(box.width for box in boxes))
    boxes = [with_aspect(box, height, width, drawn) for box in boxes]
    fits = [Fit.padded(box.height, box.width, *drawn) for box in boxes]
    return [Region(*one) for one in zip(boxes, fits, marked, strict=True)]
