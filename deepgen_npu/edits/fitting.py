"""An image at the size that a model draws: stretched to it, or padded to it without distortion.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..rgb import to_rgb


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """Where an image lies in a drawn one; all in pixels of that. What is around it is padding.

    Attributes:
        height: Of the drawn image.
        width: Of the drawn image.
        top: First row of the image in it.
        left: First column of the image in it.
        rows: Of the image in it.
        columns: Of the image in it.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def stretched(cls, height: int, width: int) -> Fit:
        """All of a drawn image, whatever the aspect ratio of the image is."""
        return cls(height, width, 0, 0, height, width)

    @classmethod
    def padded(cls, image_height: int, image_width: int, height: int, width: int) -> Fit:
        """An image in the middle of a drawn one, as large as fits with its own aspect ratio, to a pixel.

        Args:
            image_height: Of the image.
            image_width: Of the image.
            height: Of the drawn image.
            width: Of the drawn image.
        """
        scale = min(height / image_height, width / image_width)
        rows = min(max(round(image_height * scale), 1), height)
        columns = min(max(round(image_width * scale), 1), width)
        full = max(image_height / height, image_width / width)
        if (round(height * full), round(width * full)) == (image_height, image_width):
            # The aspect ratio is the same but for the rounding of the image's own sides.
            if height - rows <= 1 and width - columns <= 1:
                return cls.stretched(height, width)
        return cls(height, width, (height - rows) // 2, (width - columns) // 2, rows, columns)

    def apply(self, image: Image.Image) -> Image.Image:
        """The image as the model is to see it: RGB of ``width`` x ``height``.

        It is resized with PIL's default filter (bicubic, with antialiasing) and padded by its own reflection: grey or
        white around it would be something to edit.
        """
        resized = to_rgb(image).resize((self.columns, self.rows))
        if (self.rows, self.columns) == (self.height, self.width):
            return resized
        below, right = self.height - self.rows - self.top, self.width - self.columns - self.left
        pixels = np.pad(np.array(resized), ((self.top, below), (self.left, right), (0, 0)), mode="reflect")
        return Image.fromarray(pixels)

    def content(self, drawn: Tensor) -> Tensor:
        """The image in a drawn one: [..., height, width] to [..., rows, columns]."""
        return drawn[..., self.top : self.top + self.rows, self.left : self.left + self.columns]


def padded(images: Sequence[Image.Image], height: int, width: int) -> list[Image.Image]:
    """Images padded to the size that is drawn, in pixels, each as its own shape needs it."""
    return [Fit.padded(one.height, one.width, height, width).apply(one) for one in images]
