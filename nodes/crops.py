"""Regions cut out for the samplers of ComfyUI, and their edits put back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..deepgen_npu.checks import Named, must_be
from ..deepgen_npu.edits.boxes import MARKED
from ..deepgen_npu.edits.filters import box_max
from ..deepgen_npu.edits.region import Region, plan_one
from ..deepgen_npu.edits.run import edited
from ..deepgen_npu.formatting import format_size
from ..deepgen_npu.images import unit_pixels
from ..deepgen_npu.sizes import TRAINED_SIDE, SizeRules
from .edited import to_output
from .inputs import EDITING_MULTIPLE, GENERATION_MULTIPLE, LONGEST_SIDE


if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

LATENT = 8
"""Pixels along a side for each latent."""

SIZES = SizeRules(GENERATION_MULTIPLE, EDITING_MULTIPLE, EDITING_MULTIPLE, LATENT, LONGEST_SIDE, TRAINED_SIDE)
"""Those of DeepGen 1.0: crops are of its size for a model that draws smaller, too (see `images`)."""


@dataclass(frozen=True)
class CroppedRegions:
    """What DeepGen Crop Region cut out, so that DeepGen Put Back knows where it belongs.

    Attributes:
        image: IMAGE [b, H, W, C] that it was cut out of.
        masks: [b, H, W], where it may be changed.
        regions: One for each image, all of which are drawn at one size.
        shown: What was cut out, [b] of that size.
    """

    image: Tensor
    masks: Tensor
    regions: list[Region]
    shown: list[Image.Image]

    @classmethod
    def cut(cls, image: Tensor, masks: Tensor, context: float) -> CroppedRegions:
        """Cut out what each mask marks, with its surroundings.

        Args:
            image: IMAGE [b, H, W, C].
            masks: [b, H, W]; an empty one stands for all of the image, of which nothing may be changed then.
            context: See `boxes.CONTEXT`.
        """
        regions = plan_one(masks, SIZES, context)
        for number, mask in enumerate(masks, 1):
            if bool((mask < MARKED).all()):
                logger.info(
                    "DeepGen Crop Region: mask %d is empty, so that nothing will be changed: paint it.", number
                )
        shown = [region.shown(pixels.permute(2, 0, 1)) for region, pixels in zip(regions, image, strict=True)]
        return cls(image, masks, regions, shown)

    def images(self) -> Tensor:
        """The crops: IMAGE [b, h, w, 3]."""
        return torch.stack([unit_pixels(one).permute(1, 2, 0) for one in self.shown])

    def noise_masks(self) -> Tensor:
        """MASK [b, h, w] for inpainting: all latents that the mask touches, and one more around them.

        The rim of what is changed would else be held to the old content by latents that the mask covers in part.
        """
        found = []
        for region, mask in zip(self.regions, self.masks, strict=True):
            fit, part = region.fit, (region.mask(mask) >= MARKED).float()
            whole = torch.zeros(fit.height, fit.width)
            inner = F.adaptive_max_pool2d(part[None], (fit.rows, fit.columns))[0]
            whole[fit.top : fit.top + fit.rows, fit.left : fit.left + fit.columns] = inner
            latents = box_max(F.max_pool2d(whole[None], LATENT)[0], 3)
            found.append(latents.repeat_interleave(LATENT, 0).repeat_interleave(LATENT, 1))
        return torch.stack(found)

    def put_back(self, edits: Tensor, keep_unchanged: bool) -> tuple[Tensor, Tensor]:
        """Put edits of the crops into the image.

        Args:
            edits: IMAGE [n, h, w, C] of the size of the crops: one for each, or several of the only one.
            keep_unchanged: Whether what the edit left alone stays as it is inside of the mask, too.

        Returns:
            IMAGE [n, H, W, 3 or 4] and MASK [n, H, W].

        Raises:
            ValueError: For edits of another size or number.
        """
        fit = self.regions[0].fit
        if tuple(edits.shape[1:3]) != (fit.height, fit.width):
            found = Named(format_size(edits.shape[2], edits.shape[1]))
            requirement = f"{format_size(fit.width, fit.height)}, the size of the image from DeepGen Crop Region"
            raise ValueError(must_be("image", requirement, found))
        count = len(self.regions)
        if count not in (1, len(edits)):
            raise ValueError(f"image has {len(edits)} images but region is of {count}: use {count}.")
        found = []
        for number, edit in enumerate(edits):
            index = min(number, count - 1)
            region, mask = self.regions[index], self.masks[index]
            drawn = edit[..., :3].permute(2, 0, 1).expand(3, -1, -1)
            image = self.image[index].permute(2, 0, 1)
            found.append(edited(region, image, self.shown[index], drawn, mask, keep_unchanged))
        return to_output(found, self.image.device, "DeepGen Put Back")
