"""Masks of users as numbers in [0, 1]: 1 where an image may be changed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..checks import Named, must, must_be, type_of
from ..rgb import to_mask


LARGEST_SIDE = 256
"""To which a mask is reduced before its parts or its thickness are told, in pixels."""


def as_mask(mask: Image.Image | np.ndarray | Tensor, height: int, width: int) -> Tensor:
    """A mask at the size of an image: [height, width] in float32.

    Args:
        mask: White, or 1, where the image may be changed. A PIL image with transparency: where it is transparent. An
            array or tensor [H, W] has booleans or numbers in [0, 1]. Another size than the image's is scaled
            bilinearly, as ComfyUI does.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        TypeError: For something else.
        ValueError: For another shape, and for numbers outside of [0, 1].
    """
    if isinstance(mask, Image.Image):
        values = torch.from_numpy(np.array(to_mask(mask))).float() / 255
    elif isinstance(mask, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(mask))
    elif isinstance(mask, Tensor):
        values = mask
    else:
        raise TypeError(must_be("mask", "a PIL image, or an array or tensor [height, width]", type_of(mask)))
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(must("mask", "have the shape [height, width]", list(values.shape)))
    values = values.detach().float().cpu()
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(must("mask", "have numbers from 0 to 1", Named(f"{low:g} to {high:g}")))
    return resized(values[None], height, width)[0]


def reduced(mask: Tensor) -> tuple[Tensor, int]:
    """A mask [H, W] of at most `LARGEST_SIDE` pixels a side, each the largest of a square; and the side of that."""
    times = max(1, -(-max(mask.shape) // LARGEST_SIDE))
    mask = mask.float()
    return F.max_pool2d(mask[None], times, ceil_mode=True)[0] if times > 1 else mask, times


def resized(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks [b, H, W] scaled bilinearly to [b, height, width]."""
    if tuple(masks.shape[-2:]) == (height, width):
        return masks
    return F.interpolate(masks[:, None], (height, width), mode="bilinear")[:, 0]
