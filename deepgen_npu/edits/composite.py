"""An edit put into its input at the input's own size: what was not changed is the input's, to the bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .filters import gaussian


ZERO = 1 / 512
"""Parts below this are none, and above 1 - this they are all: half of the smallest step of 8 bits."""

SOFT_LOW, SOFT_HIGH, SOFT_PART = 0.02, 0.98, 0.02
"""A mask is soft if more than the last part of what it marks lies between the first two."""

HIGH_PASS = 0.1
"""Values of a soft mask below this are 0: nearly black is not meant."""

FEATHER = 4.0
"""Sigma of the feather in pixels of the drawn image; it is enlarged with it."""

CARRIED_SIGMA = 24.0
"""Of the slow field of colours that is carried into what changed, in pixels of the drawn image."""

CARRIED_PULL = 0.02
"""How hard that field is pulled to its mean where no unchanged pixel is near."""


def clean(alpha: Tensor) -> Tensor:
    """Parts so close to 0 or 1 that 8 bits cannot tell become exactly that."""
    alpha = torch.where(alpha < ZERO, torch.zeros_like(alpha), alpha)
    return torch.where(alpha > 1 - ZERO, torch.ones_like(alpha), alpha)


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
    return clean((2 * gaussian(mask, sigma) - 1).clamp(0, 1) * mask)


def inradius(mask: Tensor) -> float:
    """About the radius of the largest disc in a mask [H, W], in pixels; told on at most 256 pixels a side."""
    times = max(1, -(-max(mask.shape) // 256))
    small = F.max_pool2d(mask[None, None].float(), times, ceil_mode=True) if times > 1 else mask[None, None].float()
    padded = F.pad(small, (1, 1, 1, 1))
    radius = 0
    while bool(padded.any()):
        padded = -F.max_pool2d(-padded, 3, stride=1, padding=1)
        radius += 1
    return float(radius * times)


def outward(mask: Tensor, sigma: float) -> Tensor:
    """A mask of zeros and ones with a feather around it: [H, W], 1 inside."""
    return clean(torch.maximum(mask, (2 * gaussian(mask, sigma)).clamp(0, 1)))


def carried(image: Tensor, edit: Tensor, changed: Tensor) -> Tensor:
    """The edit with the colours of the input carried into it, from where nothing was changed.

    Args:
        image: [3, H, W] in [0, 1].
        edit: The same, with its motion undone.
        changed: [H, W], 1 where the edit changed something.
    """
    left = 1 - changed
    if not bool(left.any()):
        return edit
    difference = image - edit
    mean = (difference * left).sum((1, 2)) / left.sum()
    weight = gaussian(left, CARRIED_SIGMA)
    field = gaussian(difference * left, CARRIED_SIGMA) + CARRIED_PULL * mean[:, None, None]
    return edit + field / (weight + CARRIED_PULL)
