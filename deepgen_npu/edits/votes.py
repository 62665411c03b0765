"""Whether a registration can be believed: blocks of the image vote, each by its own residual shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .filters import box_mean


SIDE = 64
"""Of a block, in pixels; blocks overlap by half."""

TEXTURE = 0.02
"""Local variance of normalised brightness above which there is texture."""

LEAST_EIGENVALUE = 8.0
"""Of a block's matrix; below it, the block lies on a straight edge, along which nothing can be told."""

LEAST_PART = 0.25
"""Of a block's pixels that must have weight."""

AGREES = 0.3
"""Residual shift in pixels up to which a block agrees."""


@dataclass(frozen=True)
class Votes:
    """The vote of all blocks.

    Attributes:
        places: Centres of the blocks that count, [n, 2], down and right.
        residuals: Their residual shifts in pixels, [n, 2].
        textured: Number of blocks with texture.
    """

    places: Tensor
    residuals: Tensor
    textured: int

    @property
    def counting(self) -> int:
        """Blocks that can tell a shift."""
        return len(self.places)

    @property
    def agreeing(self) -> int:
        """Blocks whose residual shift is small."""
        return int((self.residuals.norm(dim=1) < AGREES).sum())

    @property
    def spread(self) -> float:
        """Of the residual shifts of those that agree, in pixels: 1.48 x their median is the deviation of a normal."""
        lengths = self.residuals.norm(dim=1)
        lengths = lengths[lengths < AGREES]
        return float(1.48 * lengths.median()) if len(lengths) else float("inf")

    def slopes_are_proven(self, shape: Sequence[int]) -> tuple[bool, bool]:
        """Whether the residual shifts grow with the distance to the centre, for each axis: then there is a scale.

        Args:
            shape: Height and width of the image.
        """
        return tuple(self._slope_is_proven(axis, shape[axis]) for axis in (0, 1))  # pyright: ignore

    def _slope_is_proven(self, axis: int, side: int) -> bool:
        if self.counting < 8:
            return False
        place = self.places[:, axis] - (side - 1) / 2
        residual = self.residuals[:, axis]
        keep = (residual - residual.median()).abs() < 3
        slope = error = torch.tensor(0.0)
        for _ in range(5):
            if int(keep.sum()) < 8:
                return False
            x, y = place[keep] - place[keep].mean(), residual[keep] - residual[keep].mean()
            total = x.square().sum()
            if total <= 0:
                return False
            slope = (x * y).sum() / total
            rest = y - slope * x
            error = (rest.square().sum() / max(len(x) - 2, 1) / total).sqrt()
            line = residual - residual[keep].mean() - slope * (place - place[keep].mean())
            usual = 1.48 * line[keep].abs().median() + 1e-3
            keep = line.abs() < 3 * usual
        return bool(slope.abs() > 3.5 * error and slope.abs() * side / 2 > 0.06)


def local_correlation(one: Tensor, other: Tensor, side: int = 11) -> tuple[Tensor, Tensor]:
    """Correlation of two textures [H, W] around each pixel, and whether both have texture there."""
    mean_one, mean_other = box_mean(one, side), box_mean(other, side)
    variance_one = (box_mean(one.square(), side) - mean_one.square()).clamp_min(0)
    variance_other = (box_mean(other.square(), side) - mean_other.square()).clamp_min(0)
    together = box_mean(one * other, side) - mean_one * mean_other
    correlation = together / (variance_one * variance_other).sqrt().clamp_min(1e-6)
    return correlation, (variance_one > TEXTURE) & (variance_other > TEXTURE)


def count_votes(one: Tensor, other: Tensor, weight: Tensor | None = None) -> Votes:
    """Let the blocks vote.

    Args:
        one: Texture of the image, [H, W] (see `registration.normalised`).
        other: Texture of the edit, with the motion undone.
        weight: What counts, [H, W]; None for all.
    """
    correlation, has_texture = local_correlation(one, other)
    counts = ((correlation - 0.4) / 0.5).clamp(0, 1).square() * has_texture
    if weight is not None:
        counts = counts * weight
        has_texture = has_texture & (weight > 0.5)
    rows, columns = torch.gradient((one + other) / 2)
    error = other - one
    products = torch.stack(
        [
            counts * rows * rows,
            counts * rows * columns,
            counts * columns * columns,
            counts * rows * error,
            counts * columns * error,
            (counts > 0).float(),
            has_texture.float(),
        ]
    )
    side = min(SIDE, *one.shape)
    sums = torch.nn.functional.avg_pool2d(products[None], side, stride=max(1, side // 2))[0] * side * side
    a, b, c, d, e, part, texture = sums.flatten(1).double()
    smaller = (a + c) / 2 - (((a - c) / 2).square() + b.square()).sqrt()
    area = side * side
    telling = (smaller > LEAST_EIGENVALUE) & (part > LEAST_PART * area)
    determinant = (a * c - b * b).clamp_min(1e-12)
    residuals = torch.stack([(c * d - b * e) / determinant, (a * e - b * d) / determinant], dim=1)
    height, width = sums.shape[-2:]
    step = max(1, side // 2)
    down = (torch.arange(height) * step + (side - 1) / 2)[:, None].expand(height, width)
    right = (torch.arange(width) * step + (side - 1) / 2)[None].expand(height, width)
    places = torch.stack([down.flatten(), right.flatten()], dim=1).double()
    textured = int((texture > LEAST_PART * area).sum())
    return Votes(places[telling], residuals[telling], textured)
