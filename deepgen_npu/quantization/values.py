"""From weights to quantised ones, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import FP8, LayerFormat
from .rotation import rotate


LARGEST_INT8 = 127
SMALLEST_SCALE = 1e-30
"""Of a row of zeros, so that nothing is divided by zero (as in comfy-kitchen)."""


def quantize(weight: Tensor, layer: LayerFormat) -> tuple[Tensor, Tensor]:
    """The weight as it is stored, and its scale.

    Args:
        weight: [n, m], in any floating dtype; computed in float32.
        layer: The format.

    Returns:
        [n, m] in int8 and [n, 1] in float32, a scale for each row; or in float8 and [], a scale for all.
    """
    return rounded(rotated(weight, layer), layer)


def rotated(weight: Tensor, layer: LayerFormat) -> Tensor:
    """A weight [n, m] in float32, rotated where the format says so: what `rounded` rounds."""
    return rotate(weight.float(), layer.group) if layer.group else weight.float()


def rounded(weight: Tensor, layer: LayerFormat) -> tuple[Tensor, Tensor]:
    """As `quantize`, of what `rotated` returned."""
    if layer.name == FP8:
        scale = (weight.abs().amax() / torch.finfo(torch.float8_e4m3fn).max).clamp_min(SMALLEST_SCALE)
        return (weight / scale).to(torch.float8_e4m3fn), scale
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST_INT8).clamp_min(SMALLEST_SCALE)
    return (weight / scale).round_().clamp_(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scale


def dequantize(stored: Tensor, scale: Tensor, layer: LayerFormat, dtype: torch.dtype) -> Tensor:
    """The weight [n, m] again; computed in float32 and rounded once to ``dtype``."""
    weight = stored.float().mul_(scale)
    return (rotate(weight, layer.group) if layer.group else weight).to(dtype)
