"""Which image sizes a checkpoint allows, and which one suits a given input."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import checks
from .errors import CheckpointError
from .model.architecture import VISION_SCALE


PAD, STRETCH = "pad", "stretch"
"""How ``follow_input`` fits an image into a size that the model draws."""


TRAINED_SIDE = 512
"""DeepGen 1.0 was trained at the area of 512 x 512 only (deepgenteam/deepgen issue 3)."""

AREA_TOLERANCE = 0.15
"""Of `SizeRules.least_padding`: how far its area may be from the trained one. With 0.1, images of 3:2 stay padded."""

AREA_WEIGHT = 0.15
"""Of `SizeRules.least_padding`: what another area counts, in padding."""


def nearest_sides(side: int, multiple: int, largest: int) -> tuple[int, ...]:
    """The one or two nearest multiples of ``multiple`` from itself to ``largest``, the smaller first."""
    lower = min(max(side // multiple * multiple, multiple), largest)
    upper = min(max(-(-side // multiple) * multiple, multiple), largest)
    return (lower,) if lower == upper else (lower, upper)


@dataclass(frozen=True)
class SizeRules:
    """Sizes in pixels.

    Attributes:
        generation_multiple: Sides of generated images are multiples of this (16 for DeepGen 1.0: the VAE's
            factor 8 times the DiT's patch 2).
        editing_multiple: The same with reference images (32: one merge cell of the vision tower).
        vision_cell: Pixels covered by one merge cell of the vision tower, that is by one image token (32).
        vae_factor: Pixels along a side for each latent (8).
        longest_side: Longest side that the DiT's position grid covers (6144).
        trained_side: Side of the square whose area the model was trained at (512).
    """

    generation_multiple: int
    editing_multiple: int
    vision_cell: int
    vae_factor: int
    longest_side: int
    trained_side: int

    @classmethod
    def from_configs(
        cls,
        transformer: Mapping[str, Any],
        vae: Mapping[str, Any],
        vision: Mapping[str, Any],
        trained_side: int = TRAINED_SIDE,
    ) -> SizeRules:
        """Derive the rules from the configs of DiT, VAE and vision tower.

        Raises:
            CheckpointError: When a merge cell of the vision tower does not cover an integer number of pixels.
        """
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        generation = factor * transformer["patch_size"]
        cell = vision["patch_size"] * vision["spatial_merge_size"] / VISION_SCALE
        if cell != int(cell):
            raise CheckpointError(
                checks.must("a merge cell of the vision tower", "cover an integer number of pixels", cell)
            )
        longest = transformer["pos_embed_max_size"] * generation
        return cls(
            generation_multiple=generation,
            editing_multiple=math.lcm(generation, int(cell)),
            vision_cell=int(cell),
            vae_factor=factor,
            longest_side=longest,
            trained_side=min(trained_side, longest),
        )

    def multiple(self, editing: bool) -> int:
        """Of which sides must be multiples, in pixels."""
        return self.editing_multiple if editing else self.generation_multiple

    def check(self, height: int, width: int, editing: bool) -> tuple[int, int]:
        """Refuse a size that the model cannot make.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            editing: Whether there are reference images.

        Returns:
            (height, width) as plain integers.

        Raises:
            ValueError: Naming the side, its value and the nearest allowed values.
        """
        multiple = self.multiple(editing)
        largest = self.longest_side // multiple * multiple
        requirement = f"a multiple of {multiple} from {multiple} to {largest}"
        sides = {
            name: checks.integer(name, side, -sys.maxsize, None, requirement)
            for name, side in (("height", height), ("width", width))
        }
        for name, side in sides.items():
            if side % multiple == 0 and multiple <= side <= largest:
                continue
            # A side that only generation allows is a common mistake.
            advice = ""
            if editing and side % self.generation_multiple == 0 and multiple <= side <= largest:
                advice = f"Editing takes multiples of {multiple}, generation of {self.generation_multiple}."
            nearest = nearest_sides(side, multiple, largest)
            raise ValueError(checks.must_be(name, requirement, side, nearest, advice))
        return sides["height"], sides["width"]

    def match_aspect(self, height: int, width: int, editing: bool = True) -> tuple[int, int]:
        """The size with the aspect ratio of an image at the area that the model was trained at.

        Sides are scaled by trained_side / sqrt(height x width) and rounded up to the next multiple, as in the
        original's training data (resize_image_fix_pixels), then limited to what the model allows.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            editing: Whether there are reference images.

        Returns:
            (height, width).
        """
        multiple = self.multiple(editing)
        largest = self.longest_side // multiple * multiple
        scale = self.trained_side / math.sqrt(height * width)

        def rounded(side: int) -> int:
            # The tolerance keeps 512 x 512 at 512: the square root is not exact.
            return min(max(math.ceil(side * scale / multiple - 1e-9) * multiple, multiple), largest)

        return rounded(height), rounded(width)

    def least_padding(self, height: int, width: int, editing: bool = True) -> tuple[int, int]:
        """The size in which an image of another aspect ratio fits with the least padding, at about the trained area.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            editing: Whether there are reference images.

        Returns:
            (height, width): the multiples with the least
            ``padded part + AREA_WEIGHT x |ln(area of the image in it / trained area)|``.
        """
        multiple = self.multiple(editing)
        largest = self.longest_side // multiple
        trained = self.trained_side**2
        best = self.match_aspect(height, width, editing)
        least = math.inf
        for rows in range(multiple, largest * multiple + 1, multiple):
            low = math.ceil(trained * (1 - AREA_TOLERANCE) / rows / multiple)
            high = min(math.floor(trained * (1 + AREA_TOLERANCE) / rows / multiple), largest)
            for columns in range(low * multiple, high * multiple + 1, multiple):
                scale = min(rows / height, columns / width)
                content = scale * scale * height * width
                cost = 1 - content / (rows * columns) + AREA_WEIGHT * abs(math.log(content / trained))
                if cost < least:
                    best, least = (rows, columns), cost
        return best
