"""Filters and changes of size as products with small matrices, along the rows and the columns of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


BLOCK = 128
"""Results that one matrix computes: it has no more columns than these need, since what is far away weighs nothing."""


@dataclass(frozen=True)
class Line:
    """What is computed of a line of pixels: each result is a weighted sum of some of them.

    Attributes:
        size: Number of results.
        blocks: For each, the first result, the first pixel, and the weights [results, pixels] in float32.
    """

    size: int
    blocks: tuple[tuple[int, int, Tensor], ...]

    @classmethod
    @torch.inference_mode(False)  # may be kept, and used outside of it
    def of(cls, index: Tensor, weights: Tensor, size: int) -> Line:
        """From the pixels of each result.

        Args:
            index: [n, k], whole numbers. Beyond the ends, the line is reflected.
            weights: [n, k].
            size: Pixels of the line.
        """
        index, weights = reflected(index, size), weights.double()
        blocks = []
        for start in range(0, len(index), BLOCK):
            pixels, parts = index[start : start + BLOCK], weights[start : start + BLOCK]
            first = int(pixels.min())
            matrix = torch.zeros(len(pixels), int(pixels.max()) + 1 - first, dtype=torch.float64)
            matrix.scatter_add_(1, pixels - first, parts)
            blocks.append((start, first, matrix.float()))
        return cls(len(index), tuple(blocks))


def reflected(index: Tensor, size: int) -> Tensor:
    """Whole positions beyond the ends turned back at them: -1 is 0, ``size`` is ``size - 1``, and so on."""
    period = index.remainder(2 * size)
    return torch.where(period < size, period, 2 * size - 1 - period)


@torch.no_grad()
def along(image: Tensor, rows: Line, columns: Line) -> Tensor:
    """Both directions of an image [..., H, W], in float32: [..., ``rows.size``, ``columns.size``]. It has no gradient.

    Args:
        image: [..., H, W].
        rows: What is computed of each column, from above.
        columns: What is computed of each row, from the left.
    """
    height, width = image.shape[-2:]
    flat = image.float().reshape(-1, height, width)
    between = flat.new_empty(len(flat), rows.size, width)
    for start, first, matrix in rows.blocks:
        weights = matrix.to(flat.device)
        for one, result in zip(flat, between, strict=True):
            # Into its place, which costs no copy.
            torch.mm(weights, one[first : first + weights.shape[1]], out=result[start : start + len(weights)])
    lines = between.reshape(-1, width)
    result = lines.new_empty(len(lines), columns.size)
    for start, first, matrix in columns.blocks:
        weights = matrix.to(flat.device)
        part = result[:, start : start + len(weights)]
        torch.mm(lines[:, first : first + weights.shape[1]], weights.T, out=part)
    return result.reshape(*image.shape[:-2], rows.size, columns.size)
