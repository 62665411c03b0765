"""What an edit changed: a mask, and whether it changed everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .colours import PLAIN_WEIGHT, lab, without_drift
from .filters import box_mean, gaussian
from .registration import LUMA, normalised
from .votes import local_correlation


SMOOTHING = 1.5
"""Sigma, in pixels, of both images before they are compared: then the VAE's blur is in neither."""

TOLERANCE, OF_GRADIENT = 5.0, 0.35
"""Difference in Lab that is none, and what it grows by with the local gradient: what remains of a shift of 0.1 pixels,
and a blur, make errors in proportion to that."""

LOW, HIGH = 0.5, 1.0
"""Of the hysteresis, in tolerances: what is above the first counts where it touches something above the second."""

SMALLEST, SMALLEST_PART = 24, 0.0006
"""Area of the smallest change: pixels, and part of the image; the larger counts."""

LEAST_HIGH, LEAST_HIGH_PART = 4, 0.15
"""Pixels above `HIGH` that a change must have, and their part of the smallest area."""

CLOSING, GROWING = 4, 4
"""Radii, in pixels: gaps that are closed, and how far a change is grown, so that no seam runs through its soft rim."""

GLOBAL_DRIFT, GLOBAL_PART, LEAST_STRUCTURE = 6.0, 0.65, 0.3
"""Of a global edit: colours drift by more, more of the image changed, or less of its structure was kept."""

LEAST_TEXTURE = 0.15
"""Part of the pixels that must have texture before lost structure means anything."""


@dataclass(frozen=True)
class Change:
    """What an edit changed.

    Attributes:
        mask: [H, W], 1 where the edit changed something, else 0.
        drift: How far colours moved all over, in Lab.
        part: Of the pixels, before the mask was grown.
        kept_structure: Part of the textured pixels whose structure was kept; 1 if there is too little texture.
    """

    mask: Tensor
    drift: float
    part: float
    kept_structure: float

    @property
    def is_global(self) -> bool:
        """Whether all of the image was meant: night, a style, another picture."""
        return self.drift > GLOBAL_DRIFT or self.part > GLOBAL_PART or self.kept_structure < LEAST_STRUCTURE


def find_change(image: Tensor, edit: Tensor) -> Change:
    """Compare an image with its edit, whose motion was undone.

    Args:
        image: [3, H, W] in [0, 1].
        edit: The same.
    """
    luma = torch.tensor(LUMA)[:, None, None]
    correlation, textured = local_correlation(normalised((image * luma).sum(0)), normalised((edit * luma).sum(0)))
    before, after = lab(gaussian(image, SMOOTHING)), lab(gaussian(edit, SMOOTHING))
    weights = torch.where(textured, correlation.clamp_min(0), torch.full_like(correlation, PLAIN_WEIGHT))
    drifted, drift = without_drift(before, after, weights)
    rows, columns = torch.gradient(before, dim=(1, 2))
    gradient = box_mean((rows.square() + columns.square()).sum(0).sqrt(), 5)
    difference = box_mean((after - drifted).norm(dim=0) / (TOLERANCE + OF_GRADIENT * gradient), 3)
    changed = _components(difference > LOW, difference > HIGH)
    kept = 1.0
    if textured.float().mean() >= LEAST_TEXTURE:
        kept = float((correlation[textured] > 0.5).float().mean())
    mask = _grown(_shrunk(_grown(changed.float(), CLOSING), CLOSING), GROWING)
    return Change(mask, drift, float(changed.float().mean()), kept)


def _components(low: Tensor, high: Tensor) -> Tensor:
    """The connected parts of ``low`` that are large enough and hold enough of ``high``: [H, W]."""
    labels = connected(low)
    count = int(labels.max()) + 1
    flat = labels.flatten()
    areas = torch.bincount(flat, minlength=count)
    highs = torch.bincount(flat, weights=high.flatten().double(), minlength=count)
    smallest = max(SMALLEST, SMALLEST_PART * low.numel())
    wanted = (areas >= smallest) & (highs >= max(LEAST_HIGH, LEAST_HIGH_PART * smallest))
    wanted[0] = False  # what is not in a part
    return wanted[labels]


def connected(mask: Tensor) -> Tensor:
    """Numbers of the connected parts of a mask [H, W], from 1; 0 outside. Corners connect.

    Each pixel takes the largest number around it until nothing changes; numbers jump along the paths that they have
    come, so that this takes few rounds.
    """
    height, width = mask.shape
    numbers = torch.arange(1, mask.numel() + 1, dtype=torch.int64).reshape(height, width)
    labels = torch.where(mask, numbers, torch.zeros_like(numbers))
    while True:
        around = F.max_pool2d(labels.double()[None, None], 3, stride=1, padding=1)[0, 0].long()
        new = torch.where(mask, around, labels)
        for _ in range(4):  # what the pixel of that number has by now
            of_number = torch.cat([new.new_zeros(1), new.flatten()])
            new = torch.where(mask, torch.maximum(new, of_number[new]), new)
        if torch.equal(new, labels):
            break
        labels = new
    _, counted = torch.unique(labels, return_inverse=True)
    if mask.all():
        counted = counted + 1
    return counted.reshape(height, width)


def _grown(mask: Tensor, radius: int) -> Tensor:
    """A mask [H, W] of zeros and ones grown by a disc, about."""
    for step in range(radius):
        # A square and a cross in turn are nearly a disc.
        if step % 2:
            mask = F.max_pool2d(mask[None, None], 3, stride=1, padding=1)[0, 0]
        else:
            rows = F.max_pool2d(mask[None, None], (3, 1), stride=1, padding=(1, 0))[0, 0]
            columns = F.max_pool2d(mask[None, None], (1, 3), stride=1, padding=(0, 1))[0, 0]
            mask = torch.maximum(rows, columns)
    return mask


def _shrunk(mask: Tensor, radius: int) -> Tensor:
    return 1 - _grown(1 - mask, radius)
