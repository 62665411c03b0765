"""Which picture sizes a checkpoint allows, and which one suits a given input."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import checks
from .errors import CheckpointError
from .model.architecture import VISION_SCALE


# DeepGen 1.0 was trained at the area of 512 x 512 only (deepgenteam/deepgen issue 3).
TRAINED_SIDE = 512


def nearest_sides(side: int, multiple: int, largest: int) -> str:
    """The nearest multiples from ``multiple`` to ``largest``, for messages: "96 or 112", or one of them."""
    lower = min(max(side // multiple * multiple, multiple), largest)
    upper = min(max(-(-side // multiple) * multiple, multiple), largest)
    return f"{lower}" if lower == upper else f"{lower} or {upper}"


@dataclass(frozen=True)
class SizeRules:
    """Sizes in pixels.

    Attributes:
        generation_multiple: Sides of generated pictures are multiples of this (16 for DeepGen 1.0: the VAE's
            factor 8 times the DiT's patch 2).
        editing_multiple: The same where there are references (32: one merge cell of the vision tower).
        vision_cell: Pixels covered by one merge cell of the vision tower, that is by one image token (32).
        vae_factor: Pixels along a side that one latent stands for (8).
        longest_side: What the DiT's position grid covers (6144).
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
            CheckpointError: When a merge cell of the vision tower does not cover whole pixels.
        """
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        generation = factor * transformer["patch_size"]
        cell = vision["patch_size"] * vision["spatial_merge_size"] / VISION_SCALE
        if cell != int(cell):
            raise CheckpointError(f"A merge cell of the vision tower covers {cell} pixels; whole ones are wanted.")
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
        return self.editing_multiple if editing else self.generation_multiple

    def check(self, height: int, width: int, editing: bool) -> tuple[int, int]:
        """Refuse a size that the model cannot make.

        Returns:
            (height, width) as plain integers.

        Raises:
            ValueError: Naming the side, its value and the nearest allowed values.
        """
        multiple = self.multiple(editing)
        largest = self.longest_side // multiple * multiple
        task = "editing" if editing else "generation"
        sides = {
            name: checks.whole(name, side, -sys.maxsize, None, "a whole number of pixels")
            for name, side in (("height", height), ("width", width))
        }
        for name, side in sides.items():
            if side % multiple == 0 and multiple <= side <= largest:
                continue
            raise ValueError(
                f"{name} is {side}, which {task} does not allow: multiples of {multiple} from {multiple} "
                f"to {largest} are wanted. Nearest: {nearest_sides(side, multiple, largest)}."
            )
        return sides["height"], sides["width"]

    def match_aspect(self, height: int, width: int, editing: bool = True) -> tuple[int, int]:
        """The size with the shape of a height x width picture at the area that the model was trained at.

        Sides are scaled by trained_side / sqrt(height x width) and rounded up to the next multiple, as in the
        original's training data (resize_image_fix_pixels), then limited to what the model allows.

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
