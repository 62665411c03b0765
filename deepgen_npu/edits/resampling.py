"""Interpolation between pixels, by a matrix for each axis.

Keys' kernel with a = -0.5 reproduces straight lines and parabolas at every fraction of a pixel. PyTorch's own has
a = -0.75, which does not reproduce a straight line, and would bias a registration by 0.04 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .filters import reflected


A = -0.5
"""Of Keys' kernel (R. Keys, Cubic convolution interpolation for digital image processing, 1981)."""


def keys_kernel(distance: Tensor) -> Tensor:
    """The weight of a pixel at a distance, in pixels."""
    x = distance.abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = A * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def sampling_matrix(positions: Tensor, size: int) -> Tensor:
    """The matrix that samples a line of pixels at positions.

    Args:
        positions: [n], in pixels: 0 is the centre of the first. Beyond the ends the line is reflected.
        size: Pixels of the line.

    Returns:
        [n, size] in float32.
    """
    positions = positions.double()
    first = positions.floor()
    matrix = torch.zeros(len(positions), size, dtype=torch.float64)
    rows = torch.arange(len(positions))
    for offset in range(-1, 3):
        index = first + offset
        weights = keys_kernel(positions - index)
        matrix.index_put_((rows, reflected(index.long(), size)), weights, accumulate=True)
    return matrix.float()


def resample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """An image at a grid of positions.

    Args:
        image: [..., H, W].
        rows: Positions [h] in pixels, from above.
        columns: Positions [w] in pixels, from the left.

    Returns:
        [..., h, w].
    """
    vertical = sampling_matrix(rows, image.shape[-2]).to(image)
    horizontal = sampling_matrix(columns, image.shape[-1]).to(image)
    return vertical @ image @ horizontal.T


def grid(size: int, shift: float, scale: float) -> Tensor:
    """Where the pixels of a line come from: position + shift + scale x (position - centre), [size]."""
    positions = torch.arange(size, dtype=torch.float64)
    return positions + shift + scale * (positions - (size - 1) / 2)
