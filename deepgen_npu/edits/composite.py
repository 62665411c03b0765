"""An edit put into its input at the input's own size: what was not changed is the input's, to the bit."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, tight
from .filters import box_max, gaussian
from .masks import reduced
from .registration import Motion
from .resampling import resample


ALL_ROWS = slice(None)

NONE, ALL = 1 / 255, 1 - 1 / 512
"""Parts below the first are none, so that a mask that is saved in 8 bits, which SaveImage of ComfyUI rounds down, is
black exactly where nothing changed; parts above the second are all."""

SOFT_LOW, SOFT_HIGH, SOFT_PART = 0.02, 0.98, 0.02
"""A mask is soft if more than the last part of what it marks lies between the first two."""

FEATHER = 4.0
"""Sigma of the feather in pixels of the drawn image; it is enlarged with it."""

CARRIED_SIGMA = 24.0
"""Of the slow field of colours that is carried into what changed, in pixels of the drawn image."""

CARRIED_PULL = 0.02
"""How hard that field is pulled to its mean where no unchanged pixel is near."""


def clean(alpha: Tensor) -> Tensor:
    """Parts so close to 0 or 1 that 8 bits cannot tell become exactly that."""
    return alpha.masked_fill(alpha < NONE, 0.0).masked_fill_(alpha > ALL, 1.0)


def blended(image: Tensor, edit: Tensor, alpha: Tensor) -> Tensor:
    """The image where alpha is 0, else a mixture; where it is 0 nothing of the edit counts, not even NaN.

    Args:
        image: [..., H, W] in any dtype, which the result has.
        edit: The same, in float.
        alpha: [H, W].
    """
    mixed = torch.lerp(image.float(), edit.float(), alpha)
    return torch.where(alpha == 0, image, mixed.to(image.dtype))


def is_soft(mask: Tensor) -> bool:
    """Whether a mask [H, W] has a soft rim of its own."""
    marked = mask > SOFT_LOW
    between = marked & (mask < SOFT_HIGH)
    return bool(between.sum() > SOFT_PART * marked.sum())


def inward(mask: Tensor, sigma: float) -> Tensor:
    """A mask of zeros and ones with a feather inside of it: [H, W], exactly 0 outside.

    Half of a blurred mask is its edge; what is above that is stretched to 0 to 1. Thin masks get a narrower one, else
    nothing of them were left.
    """
    mask = (mask > 0.5).float()
    sigma = min(sigma, inradius(mask) / 4)
    if sigma < 0.3:
        return mask
    return clean((2 * _blurred(mask, sigma) - 1).clamp(0, 1) * mask)


def _blurred(mask: Tensor, sigma: float) -> Tensor:
    """A Gaussian mean of a mask [H, W], computed only where it is not 0: a photo is large, a mask often is not."""
    result = torch.zeros_like(mask)
    box = tight(mask > 0, Box(0, 0, *mask.shape))
    if box is not None:
        reach = math.ceil(4 * sigma) + 1
        rows, columns = (box.top, box.bottom), (box.left, box.right)
        part = tuple(slice(max(0, first - reach), last + reach) for first, last in (rows, columns))
        result[part] = gaussian(mask[part], sigma)
    return result


def inradius(mask: Tensor) -> float:
    """About the radius of the largest disc in a mask [H, W], in pixels; told on the mask reduced."""
    small, times = reduced(mask)
    padded = F.pad(small, (1, 1, 1, 1))
    radius = 0
    while bool(padded.any()):
        padded = -box_max(-padded, 3)
        radius += 1
    return float(radius * times)


def outward(mask: Tensor, sigma: float) -> Tensor:
    """A mask of zeros and ones with a feather around it: [H, W], 1 inside."""
    return clean(torch.maximum(mask, (2 * _blurred(mask, sigma)).clamp(0, 1)))


def carried(image: Tensor, edit: Tensor, changed: Tensor) -> Tensor:
    """The edit with the colours of the input carried into it, from where nothing was changed.

    Args:
        image: [3, H, W] in [0, 1].
        edit: The same, with its motion undone. What is not finite counts as changed, and stays as it is.
        changed: [H, W], 1 where the edit changed something.
    """
    difference = image - edit
    finite = difference.isfinite().all(0)
    left = (1 - changed) * finite
    if not bool(left.any()):
        return edit
    difference = difference.where(finite, torch.zeros_like(difference)) * left
    mean = difference.sum((1, 2)) / left.sum()
    field = gaussian(difference, CARRIED_SIGMA) + CARRIED_PULL * mean[:, None, None]
    return edit + field / (gaussian(left, CARRIED_SIGMA) + CARRIED_PULL)


def enlarged(edit: Tensor, motion: Motion, height: int, width: int, rows: slice = ALL_ROWS) -> Tensor:
    """An edit at the size of its input, its motion undone, in one interpolation.

    Args:
        edit: [..., h, w] as drawn, without padding.
        motion: Of the edit.
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        rows: Which rows of it are computed.

    Returns:
        [..., rows, width].
    """
    lines = []
    for axis, size in enumerate((height, width)):
        drawn = edit.shape[axis - 2]
        positions = (torch.arange(size, dtype=torch.float64) + 0.5) * (drawn / size) - 0.5
        lines.append(positions + motion.shift[axis] + motion.scale[axis] * (positions - (drawn - 1) / 2))
    return resample(edit, lines[0][rows], lines[1])
