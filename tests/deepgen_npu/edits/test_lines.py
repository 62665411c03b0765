"""Filters and interpolation against what is known of them, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepgen_npu.edits.filters import box_max, box_mean, gaussian, half
from deepgen_npu.edits.lines import BLOCK, reflected
from deepgen_npu.edits.resampling import grid, keys_kernel, resample


def test_positions_beyond_the_ends_are_turned_back():
    assert reflected(torch.arange(-5, 8), 3).tolist() == [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 2 * BLOCK + 3), (2, 3, BLOCK + 1, 9)], ids=str)
def test_means_are_those_of_scipy(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    axes = (-2, -1)
    for sigma in (0.7, 6.0):
        wanted = ndimage.gaussian_filter(image.double().numpy(), sigma, truncate=4 + 0.49 / sigma, axes=axes)
        assert np.abs(gaussian(image, sigma).numpy() - wanted).max() < 1e-6
    wanted = ndimage.uniform_filter(image.double().numpy(), 5, axes=axes)
    assert np.abs(box_mean(image, 5).numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("side", [1, 3, 17])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (2, 3, 40, 9)], ids=str)
def test_maxima_are_those_of_scipy(shape, side):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    wanted = ndimage.maximum_filter(image.numpy(), side, mode="constant", cval=-np.inf, axes=(-2, -1))
    assert np.array_equal(box_max(image, side).numpy(), wanted)


def test_half_is_the_mean_of_four_pixels():
    image = torch.arange(20.0).reshape(4, 5)
    assert half(image).tolist() == [[3.0, 5.0], [13.0, 15.0]]


@pytest.mark.parametrize("fraction", np.linspace(0, 1, 11).tolist())
def test_a_ramp_is_reproduced_at_every_fraction(fraction):
    """What a = -0.75, the constant of PyTorch, does not do: there the error is 0.05."""
    ramp = torch.arange(300.0)[:, None] * 2 + torch.arange(200.0) * -3
    rows, columns = torch.arange(20, 270, dtype=torch.float64) + fraction, torch.arange(20, 170, dtype=torch.float64)
    wanted = rows[:, None] * 2 + (columns - fraction) * -3
    assert (resample(ramp, rows, columns - fraction) - wanted).abs().max() < 1e-3


def test_the_kernel_of_pytorch_would_fail_that():
    kernel = keys_kernel(torch.tensor([-1.25, -0.25, 0.75, 1.75], dtype=torch.float64))
    assert kernel @ torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64) == pytest.approx(1.25)
    line = torch.arange(16.0).expand(1, 1, 16, 16)
    theirs = torch.nn.functional.interpolate(line, scale_factor=2, mode="bicubic", align_corners=False)
    assert (theirs[0, 0, 8, 9:23].diff() - 0.5).abs().max() > 0.02


def test_parabolas_and_whole_pixels_are_reproduced():
    image = torch.rand(3, 40, 150)
    assert torch.equal(resample(image, grid(40, 0.0, 0.0), grid(150, 0.0, 0.0)), image)
    parabola = (torch.arange(64.0) / 8).square().expand(8, -1)
    positions = torch.linspace(3, 60, 101, dtype=torch.float64)
    assert (resample(parabola, grid(8, 0.0, 0.0), positions) - (positions / 8).square()).abs().max() < 1e-4


def test_what_is_not_finite_spoils_only_what_is_near():
    image = torch.rand(3, 200, 300)
    rows, columns = grid(200, 0.3, 0.01), grid(300, -0.4, 0.0)
    wanted = resample(image, rows, columns)
    image[1, 100, 150] = torch.nan
    image[2, 0, 0] = torch.inf
    result = resample(image, rows, columns)
    spoiled = ~result.isfinite()
    assert not spoiled[0].any() and spoiled[1, 97:104, 147:155].sum() == spoiled[1].sum() == 16
    assert torch.equal(result[~spoiled], wanted[~spoiled])
    assert 1 <= spoiled[2, :4, :4].sum() == spoiled[2].sum()


def test_half_precision_is_computed_in_single():
    image = torch.rand(3, 20, 20).half()
    assert resample(image, grid(20, 0.2, 0.0), grid(20, 0.2, 0.0)).dtype == torch.float32
    assert gaussian(image, 1.0).dtype == torch.float32


def test_matrices_are_kept_for_all_modes():
    """They are made once, perhaps in inference mode, and used in any."""
    image = torch.rand(3, 21, 34)
    with torch.inference_mode():
        first = gaussian(image, 1.37)
    assert torch.equal(gaussian(image.clone().requires_grad_(), 1.37), first)
