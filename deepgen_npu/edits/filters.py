"""Means of neighbourhoods and changes of size, as products with small matrices: exact, the same on every device.

All take images [..., H, W] and reflect them at their edges.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian mean, cut off at four sigma."""
    height, width = image.shape[-2:]
    return _apply(image, _gaussian(height, sigma), _gaussian(width, sigma))


def box_mean(image: Tensor, side: int) -> Tensor:
    """The mean of ``side`` x ``side`` pixels, an odd number."""
    height, width = image.shape[-2:]
    return _apply(image, _box(height, side), _box(width, side))


def half(image: Tensor) -> Tensor:
    """Half the sides, rounded down: the mean of each 2 x 2 pixels."""
    return torch.nn.functional.avg_pool2d(image[None], 2)[0]


def _apply(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T."""
    return rows.to(image) @ image @ columns.to(image).T


@functools.lru_cache(maxsize=64)
def _gaussian(size: int, sigma: float) -> Tensor:
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return _banded(size, weights / weights.sum())


@functools.lru_cache(maxsize=64)
def _box(size: int, side: int) -> Tensor:
    return _banded(size, torch.full((side,), 1 / side, dtype=torch.float64))


@torch.inference_mode(False)
def _banded(size: int, weights: Tensor) -> Tensor:
    """The matrix [size, size] of a filter with an odd number of weights, reflected at the ends."""
    reach = len(weights) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.arange(size)
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        matrix.index_put_((rows, reflected(rows + offset, size)), weight.expand(size), accumulate=True)
    return matrix.float()


def reflected(index: Tensor, size: int) -> Tensor:
    """Whole positions beyond the ends turned back at them: -1 is 0, ``size`` is ``size - 1``, and so on."""
    period = index.remainder(2 * size)
    return torch.where(period < size, period, 2 * size - 1 - period)
