"""Interpolation between pixels, of rows and columns in turn.

Keys' kernel with a = -0.5 reproduces straight lines and parabolas at every fraction of a pixel. PyTorch's own has
a = -0.75, which does not reproduce a straight line, and would bias a registration by 0.04 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .lines import Line, along


A = -0.5
"""Of Keys' kernel (R. Keys, Cubic convolution interpolation for digital image processing, 1981)."""


def keys_kernel(distance: Tensor) -> Tensor:
    """The weight of a pixel at a distance, in pixels."""
    x = distance.abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = A * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def sampled(positions: Tensor, size: int) -> Line:
    """A line of pixels at positions.

    Args:
        positions: [n], in pixels: 0 is the centre of the first. Beyond the ends the line is reflected.
        size: Pixels of the line.
    """
    positions = positions.double()
    index = positions.floor()[:, None] + torch.arange(-1, 3)
    return Line.of(index.long(), keys_kernel(positions[:, None] - index), size)


def resample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """An image at a grid of positions, in float32.

    What is not finite spoils what is interpolated from it, and nothing else.

    Args:
        image: [..., H, W].
        rows: Positions [h] in pixels, from above.
        columns: Positions [w] in pixels, from the left.

    Returns:
        [..., h, w].
    """
    lines = sampled(rows, image.shape[-2]), sampled(columns, image.shape[-1])
    finite = image.isfinite()
    if bool(finite.all()):
        return along(image, *lines)
    result = along(image.where(finite, torch.zeros_like(image)), *lines)
    return result.masked_fill(along((~finite).float(), *lines) != 0, torch.nan)


def grid(size: int, shift: float, scale: float) -> Tensor:
    """Where the pixels of a line come from: position + shift + scale x (position - centre), [size]."""
    positions = torch.arange(size, dtype=torch.float64)
    return positions + shift + scale * (positions - (size - 1) / 2)
