"""What an edit changed: a mask, and whether it changed everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .colours import PLAIN_WEIGHT, lab, length, lost_colour, without_drift
from .filters import box_max, gaussian, half
from .registration import NOISE, Motion, Registration, brightness, normalised, register
from .votes import local_correlation


SMOOTHING = 1.5
"""Sigma, in pixels, of both images before they are compared: then the VAE's blur is in neither."""

GRADIENT_SIGMA, DIFFERENCE_SIGMA = 1.6, 1.2
"""Of the means of gradients and of differences, in pixels."""

FINE_BELOW = 256
"""Images with a shorter side than this, in pixels, are compared pixel by pixel; others 2 x 2 pixels at a time."""

LOCAL_SIGMA = 24.0
"""Of the slow rest of the drift, in pixels."""

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
"""Radii, in pixels: gaps that are closed, and how far a change is grown, so that no seam runs through its soft
rim; for images of the size that DeepGen 1.0 draws."""

USUAL_SIDE = 512
"""Of such an image, in pixels; it is less for models that draw fewer."""

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
        kept_structure: Part of the textured pixels that are not marked whose structure was kept, though their colours
            were; 1 if there are too few.
        faded: Whether the image lost its colours: in black and white, most of it may look as before.
    """

    mask: Tensor
    drift: float
    part: float
    kept_structure: float
    faded: bool = False

    @property
    def is_global(self) -> bool:
        """Whether all of the image was meant: night, a style, another picture."""
        repainted = self.drift > GLOBAL_DRIFT or self.part > GLOBAL_PART
        return repainted or self.kept_structure < LEAST_STRUCTURE or self.faded


@dataclass(frozen=True)
class Comparison:
    """An edit against its image.

    Attributes:
        registration: How far it has moved.
        motion: What of that is to be undone.
        aligned: The edit [3, H, W] with that undone.
        change: What it changed.
    """

    registration: Registration
    motion: Motion
    aligned: Tensor
    change: Change


def compare(image: Tensor, edit: Tensor, changed: Tensor | None = None) -> Comparison:
    """Compare an image with its edit; arguments as for `registration.register`."""
    registration = register(image, edit, changed)
    shape = image.shape[-2:]
    motion = registration.motion
    if motion.moves(*shape) < NOISE:
        motion = Motion()  # resampling for so little would cost sharpness
    aligned = motion.undone(edit)
    return Comparison(registration, motion, aligned, find_change(image, aligned, motion.seen(*shape)))


def scaled(pixels: float, shape: Sequence[int]) -> float:
    """A length for images of the usual size in one of another shape [..., H, W], which may be smaller."""
    return pixels * min(1.0, math.sqrt(shape[-2] * shape[-1]) / USUAL_SIDE)


def find_change(image: Tensor, edit: Tensor, seen: tuple[slice, slice] | None = None) -> Change:
    """Compare an image with its edit, whose motion was undone.

    Args:
        image: [3, H, W] in [0, 1].
        edit: The same. If a value of it is not finite, everything counts as changed.
        seen: Rows and columns that the edit shows (`Motion.seen`); beyond, what is beside it counts. None for all.

    Returns:
        On the CPU, in float32.
    """
    if not bool(edit.isfinite().all()):
        return Change(torch.ones(edit.shape[-2:]), 0.0, 1.0, 0.0)
    image, edit = (one.float().cpu().clamp(0, 1) for one in (image, edit))
    correlation, textured = local_correlation(*(normalised(brightness(one)) for one in (image, edit)))
    weights = torch.where(textured, correlation.clamp_min(0), torch.full_like(correlation, PLAIN_WEIGHT))
    pixel = 1 if min(weights.shape) < FINE_BELOW else 2
    before, after = (lab(_smoothed(one, pixel)) for one in (image, edit))
    drifted, drift = without_drift(before, after, _reduced(weights, pixel), LOCAL_SIGMA / pixel)
    rows, columns = torch.gradient(before, dim=(1, 2))
    gradient = gaussian(torch.hypot(length(rows), length(columns)) / pixel, GRADIENT_SIGMA / pixel)
    difference = length(after - drifted) / (TOLERANCE + OF_GRADIENT * gradient)
    difference = gaussian(difference, DIFFERENCE_SIGMA / pixel)
    if seen is not None:
        difference = _continued(difference, seen, pixel)
    changed = _components(difference > LOW, difference > HIGH, SMALLEST / pixel**2)
    closing, growing = (max(1, round(scaled(one, edit.shape) / pixel)) for one in (CLOSING, GROWING))
    mask = _grown(_shrunk(_grown(changed.float(), closing), closing), growing)
    # Textures are compared over so many pixels in an image of any size.
    near = _enlarged(_grown(mask, GROWING // pixel - growing), pixel, edit.shape[-2:])
    mask = _enlarged(mask, pixel, edit.shape[-2:])
    unmarked, kept = textured & (near == 0), 1.0
    if unmarked.float().mean() >= LEAST_TEXTURE:
        kept = float((correlation[unmarked] > 0.5).float().mean())
    return Change(mask, drift, float(changed.float().mean()), kept, lost_colour(before, after))


def _continued(difference: Tensor, seen: tuple[slice, slice], pixel: int) -> Tensor:
    """Differences [h, w] beyond what the edit shows are those at its edge."""
    for axis, (part, side) in enumerate(zip(seen, difference.shape, strict=True)):
        margin = round(2 * SMOOTHING)  # there the mean has what is beyond
        first = 0 if part.start == 0 else -(-(part.start + margin) // pixel)
        last = side - 1 if part.stop >= side * pixel else (part.stop - margin) // pixel - 1
        if first < last:
            difference = difference.index_select(axis, torch.arange(side).clamp(first, last))
    return difference


def _smoothed(image: Tensor, pixel: int) -> Tensor:
    return _reduced(gaussian(image, SMOOTHING), pixel)


def _reduced(image: Tensor, pixel: int) -> Tensor:
    return image if pixel == 1 else half(image)


def _enlarged(mask: Tensor, pixel: int, shape: torch.Size) -> Tensor:
    """A reduced mask at its size before; the last row and column of an odd number are as those beside them."""
    index = [
        (torch.arange(side) // pixel).clamp_max(of_mask - 1) for side, of_mask in zip(shape, mask.shape, strict=True)
    ]
    return mask[index[0]][:, index[1]]


def _components(low: Tensor, high: Tensor, least: float) -> Tensor:
    """The connected parts of ``low`` that are large enough and hold enough of ``high``: [H, W]."""
    labels = connected(low)
    count = int(labels.max()) + 1
    flat = labels.flatten()
    areas = torch.bincount(flat, minlength=count)
    highs = torch.bincount(flat, weights=high.flatten().double(), minlength=count)
    smallest = max(least, SMALLEST_PART * low.numel())
    wanted = (areas >= smallest) & (highs >= max(least * LEAST_HIGH / SMALLEST, LEAST_HIGH_PART * smallest))
    wanted[0] = False  # what is not in a part
    return wanted[labels]


def connected(mask: Tensor) -> Tensor:
    """Numbers of the connected parts of a mask [H, W], from 1; 0 outside. Corners connect.

    Each pixel begins as a part of its own. In a round, each part joins the one of the largest number that it touches,
    until none touches another: few rounds, since the number of parts at least halves.
    """
    height, width = mask.shape
    part = torch.arange(mask.numel() + 1)  # of each pixel, counted from 1: a pixel of it
    own = torch.where(mask, part[1:].reshape(height, width), 0)
    while True:
        labels = part[own]
        # Numbers are exact: an image has less than 2^53 pixels.
        around = box_max(labels.double(), 3).long()
        touches = mask & (around > labels)
        if not bool(touches.any()):
            break
        part.scatter_reduce_(0, labels[touches], around[touches], "amax")
        while not torch.equal(part, further := part[part]):
            part = further
    return torch.unique(torch.cat([labels.new_zeros(1), labels.flatten()]), return_inverse=True)[1][1:].reshape(
        height, width
    )


def _grown(mask: Tensor, radius: int) -> Tensor:
    """A mask [H, W] of zeros and ones grown by a disc, about."""
    for step in range(radius):
        # A square and a cross in turn are nearly a disc.
        if step % 2:
            mask = box_max(mask, 3)
        else:
            rows = F.max_pool2d(mask[None, None], (3, 1), stride=1, padding=(1, 0))[0, 0]
            columns = F.max_pool2d(mask[None, None], (1, 3), stride=1, padding=(0, 1))[0, 0]
            mask = torch.maximum(rows, columns)
    return mask


def _shrunk(mask: Tensor, radius: int) -> Tensor:
    return 1 - _grown(1 - mask, radius)
