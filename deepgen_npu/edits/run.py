"""An edit from the image to the result: its regions are drawn one after the other and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .kept import EditedRegion, Kept
from .put_back import put_back
from .region import Region


Draw = Callable[[Sequence[Image.Image], int, int], Tensor]
"""What draws: RGB images of width x height, height, width -> their edits [n, 3, height, width] in [0, 1]. Several
images that are the same object are one image, edited several times."""


@dataclass(frozen=True)
class EditedImage:
    """The result of an edit.

    Attributes:
        image: [C, H, W], of the size and dtype of the input.
        change_mask: [H, W] in [0, 1]: how much of each pixel is the edit's. Where it is 0 the image is the input.
        kept: What to report.
    """

    image: Tensor
    change_mask: Tensor
    kept: Kept


def edit_regions(
    image: Tensor,
    regions: Sequence[Region],
    draw: Draw,
    mask: Tensor | None = None,
    keep_unchanged: bool = False,
    count: int = 1,
) -> list[EditedImage]:
    """Edit the regions of an image, each on the result of the one before.

    Args:
        image: [C, H, W] in [0, 1] in any floating-point dtype, C = 1, 3 or 4. One channel becomes three.
        regions: As `region.plan` makes them of the mask. None: nothing is drawn.
        draw: Makes the edits.
        mask: What may be changed, [H, W] in [0, 1]; None for all.
        keep_unchanged: Whether what an edit left alone stays as it is.
        count: Of edits of the same image.
    """
    results = [Result.of(image) for _ in range(count)]
    for number, region in enumerate(regions):
        if number == 0:  # all results are the same image still
            shown = [region.shown(image)] * count
        else:
            shown = [region.shown(result.image) for result in results]
        drawn = draw(shown, region.fit.height, region.fit.width)
        for result, seen, edit in zip(results, shown, drawn, strict=True):
            result.add(region, seen, edit, mask, keep_unchanged)
    return [result.finish() for result in results]


def edited(
    region: Region, image: Tensor, shown: Image.Image, drawn: Tensor, mask: Tensor | None, keep_unchanged: bool
) -> EditedImage:
    """The only region of an image [C, H, W], drawn already; arguments as for `put_back`. The image is copied."""
    result = Result.of(image)
    result.add(region, shown, drawn, mask, keep_unchanged)
    return result.finish()


class Result:
    """An image while edits are put into it."""

    def __init__(self, image: Tensor, change_mask: Tensor):
        self.image = image
        self.change_mask = change_mask
        self._found: list[EditedRegion] = []

    @classmethod
    def of(cls, image: Tensor) -> Result:
        """Nothing of [C, H, W] is changed yet. The image is copied."""
        channels = 3 if len(image) == 1 else len(image)
        return cls(image.expand(channels, -1, -1).clone(), torch.zeros(image.shape[-2:]))

    def add(
        self, region: Region, shown: Image.Image, drawn: Tensor, mask: Tensor | None, keep_unchanged: bool
    ) -> None:
        """Put the edit of a region into it; arguments as for `put_back`."""
        alpha, found = put_back(region, self.image, shown, drawn, mask, keep_unchanged)
        target = region.box.cut(self.change_mask)
        if self._found:  # the image's own part is what both edits left of it
            alpha = torch.where(target == 0, alpha, 1 - (1 - target) * (1 - alpha))
        target.copy_(alpha)
        self._found.append(found)

    def finish(self) -> EditedImage:
        """The result."""
        part = float((self.change_mask == 0).float().mean())
        return EditedImage(self.image, self.change_mask, Kept(part, tuple(self._found)))
