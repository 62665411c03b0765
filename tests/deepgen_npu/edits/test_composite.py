"""What must not change does not change by one bit."""

from __future__ import annotations

import pytest
import torch

from deepgen_npu.edits import composite
from deepgen_npu.edits.composite import (
    ALL,
    NONE,
    blended,
    carried,
    clean,
    enlarged,
    inradius,
    inward,
    is_soft,
    outward,
)
from deepgen_npu.edits.registration import Motion


def disc(radius: float, size: int = 96) -> torch.Tensor:
    """In the middle, [size, size]."""
    place = torch.arange(size) - (size - 1) / 2
    return (torch.hypot(place[:, None], place[None]) <= radius).float()


def all_levels(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[3, 64, 64], all 256 in each channel."""
    return (torch.arange(3 * 64 * 64).reshape(3, 64, 64) % 256).div(255).to(dtype)


def test_parts_that_eight_bits_cannot_tell_are_none_or_all():
    alpha = torch.tensor([0.0, 1e-6, NONE * 0.99, NONE, 0.5, ALL, (1 + ALL) / 2, 1.0])
    assert clean(alpha).tolist() == pytest.approx([0, 0, 0, NONE, 0.5, ALL, 1, 1], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_outside_every_bit_is_the_input(dtype):
    image = all_levels(dtype)
    edit = torch.full((3, 64, 64), 0.25)
    alpha = inward(disc(20, 64), 4.0)
    edit[:, alpha == 0] = torch.nan
    result = blended(image, edit, alpha)
    assert result.dtype == dtype and result.shape == image.shape
    assert torch.equal(result[:, alpha == 0], image[:, alpha == 0])
    assert torch.equal(result[:, alpha == 1], torch.full_like(result[:, alpha == 1], 0.25))
    assert bool(result.isfinite().all())
    between = (alpha > 0.2) & (alpha < 0.8)
    assert between.any() and (result[:, between] != image[:, between]).any()


def test_without_the_cut_a_tail_would_change_levels():
    """Why `clean` is there: the tail of a Gaussian moves levels that are saved by truncation."""
    image, alpha = all_levels(), torch.full((64, 64), 1e-6)
    saved = (image * 255).to(torch.uint8)
    assert ((blended(image, image * 0, alpha) * 255).to(torch.uint8) != saved).any()
    assert torch.equal((blended(image, image * 0, clean(alpha)) * 255).to(torch.uint8), saved)


@pytest.mark.parametrize("radius", [1, 2, 3, 6, 12, 30])
def test_the_feather_lies_inside_and_leaves_something_of_thin_masks(radius):
    mask = disc(radius)
    alpha = inward(mask, 8.0)
    assert not alpha[mask == 0].any()
    assert alpha.max() >= 0.8 and alpha.max() <= 1
    if radius >= 6:  # falls towards the edge
        assert alpha[48, 47 + radius] < 0.5 < alpha[48, 48]


def test_one_pixel_and_whole_images_are_masks():
    one = torch.zeros(40, 50)
    one[7, 9] = 1
    assert torch.equal(inward(one, 4.0), one)
    full = torch.ones(40, 50)
    assert torch.equal(outward(full, 4.0), full)
    assert not inward(full * 0, 4.0).any() and not outward(full * 0, 4.0).any()
    # At the image's own edge there is nothing to fade into.
    assert torch.equal(inward(full, 4.0), full)


def test_a_feather_around_the_mask_keeps_all_of_it():
    mask = disc(10)
    alpha = outward(mask, 4.0)
    assert bool((alpha[mask == 1] == 1).all())
    assert alpha[48, 48 + 12] > 0.3 and alpha[48, 48 + 30] == 0
    across = alpha[48, 48:]
    assert bool((across.diff() <= 0).all())
    assert not ((alpha > 0) & (alpha < NONE)).any()


def test_masks_are_blurred_where_they_are_as_a_whole_image_would_be():
    mask = torch.zeros(150, 200)
    mask[0:9, 180:200] = 1
    mask[40:44, 90:130] = 1
    assert torch.allclose(composite._blurred(mask, 5.0), composite.gaussian(mask, 5.0), atol=1e-6)


def test_soft_masks_are_told():
    hard = disc(20)
    assert not is_soft(hard) and not is_soft(hard * 0)
    assert is_soft(hard * 0.5) and is_soft(composite.gaussian(hard, 3.0))
    smooth = hard.clone()
    smooth[48, 28:30] = 0.5  # two pixels of an edge drawn smoothly
    assert not is_soft(smooth)


@pytest.mark.parametrize(("radius", "size"), [(5, 96), (20, 96), (100, 700)])
def test_the_largest_disc_in_a_mask(radius, size):
    ring = disc(radius, size)
    assert inradius(ring) == pytest.approx(0.75 * radius, rel=0.35)
    assert inradius(ring * 0) == 0


def test_colours_are_carried_from_what_was_left_alone():
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    changed = disc(20)
    edit = image + torch.tensor([0.05, -0.04, 0.02])[:, None, None]
    edit[0, changed == 1] += 0.2
    result = carried(image, edit, changed)
    assert (result - image)[:, changed == 0].abs().max() < 0.01
    inside = (result - image)[:, changed == 1].mean(1)
    assert inside.tolist() == pytest.approx([0.2, 0, 0], abs=0.01)
    everything = torch.ones(96, 96)
    assert torch.equal(carried(image, edit, everything), edit)


def test_colours_are_carried_past_what_is_not_finite():
    image, changed = torch.full((3, 64, 64), 0.5), disc(10, 64)
    edit = image + 0.1
    edit[1, 3, 3] = torch.nan
    result = carried(image, edit, changed)
    assert (~result.isfinite()).sum() == 1
    assert result[:, 32, 32].tolist() == pytest.approx([0.5, 0.5, 0.5], abs=1e-3)
    assert not carried(image, edit * torch.nan, changed).isfinite().any()


@pytest.mark.parametrize(("height", "width"), [(96, 160), (300, 431), (33, 57)])
def test_an_edit_is_enlarged_and_moved_at_once(height, width):
    """On a smooth image, of which each place is known: motion undone, at any size, in bands."""
    motion = Motion((1.5, -2.0), (0.01, -0.02))

    def scene(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """By places in the image, 0 to 1 in both directions."""
        return torch.sin(4 * down)[:, None] + torch.cos(5 * right)[None]

    def drawn_at(size: int, shift: float, scale: float) -> torch.Tensor:
        """Which place the pixels of the drawn image show: I(p) = E(p + t + k (p - c))."""
        centre = (size - 1) / 2
        pixels = (torch.arange(size, dtype=torch.float64) - shift + scale * centre) / (1 + scale)
        return (pixels + 0.5) / size

    drawn = scene(drawn_at(104, 1.5, 0.01), drawn_at(176, -2.0, -0.02))[None]
    result = enlarged(drawn, motion, height, width)
    down, right = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (height, width))
    assert result.shape == (1, height, width)
    inner = slice(height // 20, -height // 20), slice(width // 20, -width // 20)  # beyond the edit it is reflected
    assert (result[0] - scene(down, right))[inner].abs().max() < 1e-3
    assert torch.equal(enlarged(drawn, motion, height, width, slice(7, 20)), result[:, 7:20])
