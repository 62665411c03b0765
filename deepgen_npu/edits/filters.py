"""Means and maxima of neighbourhoods, of images [..., H, W].

Means reflect the image at its edges and are computed in float32.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .lines import Line, along


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian mean, cut off at four sigma."""
    height, width = image.shape[-2:]
    return along(image, _gaussian(height, sigma), _gaussian(width, sigma))


def box_mean(image: Tensor, side: int) -> Tensor:
    """The mean of ``side`` x ``side`` pixels, an odd number."""
    height, width = image.shape[-2:]
    return along(image, _box(height, side), _box(width, side))


def box_max(image: Tensor, side: int) -> Tensor:
    """The largest of ``side`` x ``side`` pixels, an odd number. What is beyond the edges does not count."""
    height, width = image.shape[-2:]
    pooled = F.max_pool2d(image.reshape(-1, height, width), side, stride=1, padding=side // 2)
    return pooled.reshape(image.shape)


def half(image: Tensor) -> Tensor:
    """Half the sides, rounded down: the mean of each 2 x 2 pixels."""
    height, width = (side // 2 * 2 for side in image.shape[-2:])
    rows = image[..., 0:height:2, :width] + image[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


@functools.lru_cache(maxsize=64)
def _gaussian(size: int, sigma: float) -> Line:
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return _filter(size, weights / weights.sum())


@functools.lru_cache(maxsize=64)
def _box(size: int, side: int) -> Line:
    return _filter(size, torch.full((side,), 1 / side, dtype=torch.float64))


def _filter(size: int, weights: Tensor) -> Line:
    """The same weights, an odd number of them, around each pixel."""
    reach = len(weights) // 2
    index = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)
    return Line.of(index, weights.expand(size, -1), size)
