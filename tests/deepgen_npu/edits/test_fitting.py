"""Images padded to the size that is drawn, and cut out of it again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_npu.edits.fitting import Fit


def noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("image", "drawn"),
    [
        ((300, 400), (448, 608)),
        ((301, 399), (448, 608)),
        ((64, 1), (4096, 64)),
        ((100, 3000), (96, 2880)),
        ((1, 1), (512, 512)),
        ((37, 53), (64, 64)),
        ((10, 600), (32, 64)),
    ],
)
def test_what_is_padded_and_cut_out_again_is_the_plain_resize(image, drawn):
    fit = Fit.padded(*image, *drawn)
    original = noise(*image)
    padded = fit.apply(original)
    assert (padded.height, padded.width) == drawn
    assert torch.equal(fit.content(as_tensor(padded)), as_tensor(original.resize((fit.columns, fit.rows))))
    # It is not stretched: to a pixel of what is drawn, or of the image.
    across, down = fit.columns / image[1], fit.rows / image[0]
    assert abs(across - down) <= max(
        0.5 / image[0], 0.5 / image[1], 0.51 * across / fit.columns, 0.51 * down / fit.rows
    )


def test_the_padding_is_a_reflection():
    fit = Fit.padded(20, 40, 40, 40)
    assert (fit.top, fit.rows) == (10, 20)
    original = noise(20, 40)
    padded = as_tensor(fit.apply(original))
    assert torch.equal(padded[:, 9], padded[:, 11]) and torch.equal(padded[:, 30], padded[:, 28])


@pytest.mark.parametrize("image", [(448, 672), (1000, 1500), (1001, 1501)])
def test_an_image_of_the_shape_is_not_padded(image):
    assert Fit.padded(*image, 448, 672) == Fit.stretched(448, 672)


def test_stretching_is_pils_resize():
    original = noise(30, 50)
    assert np.array_equal(np.array(Fit.stretched(64, 64).apply(original)), np.array(original.resize((64, 64))))


def test_transparency_is_over_white():
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    assert Fit.padded(20, 40, 32, 32).apply(clear).getextrema() == ((255, 255),) * 3
