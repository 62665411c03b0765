"""Masks of users: what is white, what is transparent, and what is not a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_npu.edits.masks import as_mask


def half(mode: str, size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Its right half is marked."""
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 2, 0, *size))
    return image.convert(mode)


def transparent() -> Image.Image:
    """Its right half is transparent, as the mask editors of ComfyUI and of others save it; and it is all white."""
    image = Image.new("RGBA", (8, 4), "white")
    image.putalpha(half("L").point([255 - level for level in range(256)]))
    return image


EXPECTED = torch.zeros(4, 8)
EXPECTED[:, 4:] = 1


@pytest.mark.parametrize(
    "mask",
    [
        half("L"),
        half("RGB"),
        half("1"),
        half("RGBA"),  # opaque: then its colours count
        half("P"),
        transparent(),
        transparent().convert("LA"),
        np.array(half("L")) / 255,
        np.array(half("L")) > 0,
        EXPECTED,
        EXPECTED.double(),
        EXPECTED.bool(),
        EXPECTED.to(torch.bfloat16).requires_grad_(),
    ],
)
def test_white_one_and_transparent_are_marked(mask):
    found = as_mask(mask, 4, 8)
    assert found.dtype == torch.float32 and torch.equal(found, EXPECTED)


def test_another_size_is_scaled():
    assert torch.equal(as_mask(EXPECTED, 2, 4), EXPECTED[:2, 2:6])
    assert as_mask(torch.zeros(64, 64), 30, 50).sum() == 0


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ("white", TypeError, "mask must be a PIL image, or an array or tensor"),
        (torch.zeros(1, 4, 8), ValueError, r"mask must have the shape \[height, width\], got \[1, 4, 8\]"),
        (torch.zeros(0, 8), ValueError, "mask must have the shape"),
        (EXPECTED * 255, ValueError, "mask must have numbers from 0 to 1, got 0 to 255"),
        (torch.full((4, 8), torch.nan), ValueError, "mask must have numbers from 0 to 1, got nan to nan"),
    ],
)
def test_what_is_no_mask_is_refused(mask, error, words):
    with pytest.raises(error, match=words):
        as_mask(mask, 4, 8)
