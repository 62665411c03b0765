"""Boxes around the parts of a mask, and what is drawn of them."""

from __future__ import annotations

import pytest
import torch

from deepgen_npu.edits.boxes import MOST_REGIONS, Box, boxes_of, with_aspect, with_context
from deepgen_npu.edits.fitting import Fit
from deepgen_npu.edits.region import plan
from deepgen_npu.sizes import SizeRules


RULES = SizeRules(16, 32, 32, 8, 6144, 512)


def mask_of(height: int, width: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Marked in boxes of (top, left, bottom, right)."""
    mask = torch.zeros(height, width)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def test_boxes_are_tight_also_on_a_mask_that_is_reduced_to_find_them():
    wanted = (11, 1203, 14, 1207), (700, 5, 900, 17), (1999, 1999, 2000, 2000)
    assert boxes_of(mask_of(2000, 2000, *wanted), least=64) == [Box(*one) for one in wanted]


def test_an_empty_mask_has_no_boxes():
    assert boxes_of(torch.zeros(64, 64), 512) == []
    assert boxes_of(torch.full((64, 64), 0.09), 512) == []  # nearly black is not meant


def test_parts_with_much_the_same_context_are_one():
    near = (1000, 1000, 1100, 1100), (1150, 1000, 1250, 1100)
    assert boxes_of(mask_of(3000, 4000, *near), 512) == [Box(1000, 1000, 1250, 1100)]
    far = (1000, 1000, 1100, 1100), (1000, 2000, 1100, 2100)
    assert len(boxes_of(mask_of(3000, 4000, *far), 512)) == 2


def test_there_are_not_too_many_parts():
    dots = [(top, left, top + 20, left + 20) for top in range(0, 3000, 600) for left in range(0, 4000, 600)]
    found = boxes_of(mask_of(3000, 4000, *dots), 64)
    assert 1 < len(found) <= MOST_REGIONS
    assert all(
        any(box.top <= top and bottom <= box.bottom and box.left <= left and right <= box.right for box in found)
        for top, left, bottom, right in dots
    )


def test_noise_is_grown_together():
    noise = (torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) > 0.9).float()
    assert 1 <= len(boxes_of(noise, 16)) <= MOST_REGIONS


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        (Box(1000, 1000, 1100, 1100), Box(794, 794, 1306, 1306)),  # as many pixels as are drawn
        (Box(0, 0, 100, 100), Box(0, 0, 512, 512)),  # moved into the image
        (Box(2900, 3900, 3000, 4000), Box(2488, 3488, 3000, 4000)),
        (Box(1000, 1000, 1400, 1600), Box(800, 700, 1600, 1900)),  # twice the sides
        (Box(0, 0, 3000, 4000), Box(0, 0, 3000, 4000)),
    ],
)
def test_the_context_of_a_box(box, wanted):
    assert with_context(box, 3000, 4000, least=512) == wanted


def test_a_box_is_widened_to_the_shape_that_is_drawn():
    assert with_aspect(Box(800, 700, 1600, 1900), 3000, 4000, (448, 672)) == Box(800, 700, 1600, 1900)
    assert with_aspect(Box(0, 0, 600, 600), 3000, 4000, (448, 672)) == Box(0, 0, 600, 900)
    assert with_aspect(Box(0, 0, 600, 600), 600, 700, (448, 672)) == Box(0, 0, 600, 700)  # there is no more


def test_a_small_region_is_edited_without_resampling():
    (region,) = plan(mask_of(3000, 4000, (1000, 1000, 1100, 1100)), RULES)
    assert (region.box.height, region.box.width) == (512, 512)
    assert region.fit == Fit.stretched(512, 512)


@pytest.mark.parametrize("marked", [(500, 500, 1500, 2500), (0, 0, 3000, 100), (10, 10, 2990, 3990), (5, 5, 700, 300)])
def test_a_region_is_neither_stretched_nor_padded_where_the_image_is_large_enough(marked):
    (region,) = plan(mask_of(3000, 4000, marked), RULES)
    box, fit = region.box, region.fit
    RULES.check(fit.height, fit.width, editing=True)
    if box.height < 3000 and box.width < 4000:
        assert (fit.rows, fit.columns) == (fit.height, fit.width)
    assert abs(fit.rows / box.height / (fit.columns / box.width) - 1) < 0.003
    top, left, bottom, right = marked
    assert box.top <= top and box.left <= left and box.bottom >= bottom and box.right >= right


def test_a_size_that_is_asked_for_is_drawn():
    (region,) = plan(mask_of(3000, 4000, (1000, 1000, 1100, 1100)), RULES, size=(512, 768))
    assert (region.fit.height, region.fit.width, region.box.height, region.box.width) == (512, 768, 512, 768)


def test_a_region_does_not_let_another_through():
    mask = mask_of(1000, 1000, (100, 100, 150, 150), (100, 490, 150, 540))
    first, second = plan(mask, RULES)
    assert first.box.right > 490  # it sees the other
    assert first.mask(mask).sum() == second.mask(mask).sum() == 2500
