"""Edits put back into their images: what must not change does not, to the bit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from deepgen_npu.edits.fitting import Fit
from deepgen_npu.edits.kept import EditedRegion, Kept
from deepgen_npu.edits.put_back import _reduced
from deepgen_npu.edits.region import Region, plan
from deepgen_npu.edits.run import edit_regions
from deepgen_npu.images import in_form, unit_pixels
from deepgen_npu.sizes import SizeRules


RULES = SizeRules(16, 32, 32, 8, 6144, 128)
SIDE = 300


def textured(height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """An image [3, H, W] in which all levels occur, with texture of several sizes."""
    random = np.random.default_rng(1)
    image = sum(
        np.array(
            Image.fromarray(random.random((side, side)).astype(np.float32)).resize((width, height), Image.BICUBIC)
        )
        for side in (6, 24, 96)
    )
    levels = np.clip((image - image.min()) / (image.max() - image.min()) * 300 - 20, 0, 255).round()
    pixels = torch.from_numpy(np.stack([levels, levels[::-1], 255 - levels])).float() / 255
    assert len(torch.unique(pixels)) == 256
    return pixels


class Painter:
    """Draws a red rectangle into the middle, and moves all by some pixels."""

    def __init__(self, shift: tuple[int, int] = (0, 0), gain: float = 1.0):
        self.shift, self.gain, self.seen = shift, gain, []

    def __call__(self, shown, height, width):
        edits = []
        for image in shown:
            assert image.size == (width, height)
            self.seen.append(image)
            pixels = unit_pixels(image) * self.gain
            pixels[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = torch.tensor(
                [0.9, 0.05, 0.1]
            )[:, None, None]
            edits.append(pixels.roll(self.shift, (1, 2)))
        return torch.stack(edits)


def whole(image: torch.Tensor) -> list[Region]:
    height, width = image.shape[-2:]
    return [Region.whole(height, width, Fit.padded(height, width, *RULES.least_padding(height, width)))]


def center(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = 1
    return mask


def levels(image: torch.Tensor) -> np.ndarray:
    (saved,) = in_form(image[None].float(), "pil")
    return np.array(saved)


@pytest.mark.parametrize("size", [(300, 300), (400, 300), (301, 407), (90, 70)])
def test_what_an_edit_left_alone_is_the_images(size):
    image = textured(*size)
    (edit,) = edit_regions(image, whole(image), Painter(), keep_unchanged=True)
    assert edit.image.shape == image.shape and edit.change_mask.shape == size
    same = edit.change_mask == 0
    assert torch.equal(edit.image[:, same], image[:, same])
    middle = center(*size) > 0
    assert edit.change_mask[middle].min() > 0.99
    assert 0.6 < edit.kept.part == same.float().mean()
    assert (edit.image[0][middle].median() - 0.9).abs() < 0.02


def test_a_shift_is_found_and_undone():
    image = textured()
    (edit,) = edit_regions(image, whole(image), Painter(shift=(1, -2)), keep_unchanged=True)
    (found,) = edit.kept.regions
    scale = SIDE / 128
    assert found.certain and found.reason == ""
    assert found.shift == pytest.approx((-2 * scale, scale), abs=0.3 * scale)
    assert found.box == (0, 0, SIDE, SIDE)
    reds = torch.where((edit.image[0] > 0.8) & (edit.image[1] < 0.2) & (edit.image[2] < 0.2))
    assert float(reds[0].float().mean()) == pytest.approx(SIDE / 2, abs=1.5)
    assert float(reds[1].float().mean()) == pytest.approx(SIDE / 2, abs=1.5)


@pytest.mark.parametrize("size", [(90, 300), (300, 90), (100, 100)])
def test_a_shift_is_undone_where_an_image_was_drawn_larger(size):
    """Along one side, or both: the red square ends where it was meant."""
    image = textured()[:, : size[0], : size[1]]
    fit = Fit.stretched(128, 256)
    (edit,) = edit_regions(image, [Region.whole(*size, fit)], Painter(shift=(2, 4)), keep_unchanged=True)
    assert edit.kept.regions[0].shift == pytest.approx((4 * size[1] / 256, 2 * size[0] / 128), abs=0.2)
    red = torch.tensor([0.9, 0.05, 0.1])[:, None, None]
    places = torch.where(((edit.image - red).abs().amax(0) < 0.04) & (edit.change_mask > 0.9))
    middle = [float(place.float().mean()) for place in places]
    assert middle == pytest.approx([side / 2 - 0.5 for side in size], abs=0.6)


def test_an_edit_of_everything_is_kept_whole():
    image = textured()
    dark = Painter(gain=0.3)
    (edit,) = edit_regions(image, whole(image), dark, keep_unchanged=True)
    assert edit.kept.part == 0 and edit.change_mask.min() == 1
    assert edit.kept.regions[0].global_edit and edit.kept.regions[0].shift == (0, 0)
    assert edit.image.shape == image.shape and edit.image.mean() < image.mean() * 0.5
    drift = edit.kept.regions[0].drift
    assert drift is not None and drift > 6
    assert str(edit.kept) == f"kept 0.0 % of the pixels; a global edit (colours drift by {drift:.1f} in CIE Lab)"


@pytest.mark.parametrize("keep_unchanged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_outside_of_a_mask_nothing_changes(dtype, keep_unchanged):
    image, mask = textured(600, 500).to(dtype), torch.zeros(600, 500)
    mask[200:300, 150:260] = 1
    (edit,) = edit_regions(image, plan(mask, RULES), Painter(gain=0.95), mask, keep_unchanged)
    outside = mask == 0
    assert edit.image.dtype == dtype and edit.image.shape == image.shape
    assert torch.equal(edit.image[:, outside], image[:, outside])
    assert np.array_equal(levels(edit.image)[outside], levels(image)[outside])
    assert edit.change_mask[outside].max() == 0 and edit.change_mask.max() == 1
    assert not torch.equal(edit.image, image)


@pytest.mark.parametrize(("side", "growth"), [(512, 8), (64, 1)])
def test_what_is_near_a_mask_is_not_taken_for_the_image(side, growth):
    """An edit may reach a little further than the mask; what is drawn smaller, as little as that shows."""
    mask = torch.zeros(1000, 1000)
    mask[500, 500] = 1
    known = _reduced(mask, side, side)
    rows, columns = (torch.where(known.amax(axis))[0] for axis in (1, 0))
    assert known.sum() == (2 * growth + 1) ** 2 and known.unique().tolist() == [0, 1]
    assert int(rows.median()) == int(columns.median()) == side // 2


def test_nan_outside_of_a_mask_does_not_get_in(caplog):
    image, mask = textured(), center(SIDE, SIDE)

    def broken(shown, height, width):
        drawn = torch.full((1, 3, height, width), torch.nan)
        drawn[:, :, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 0.5
        return drawn

    with caplog.at_level(logging.WARNING):
        (edit,) = edit_regions(image, plan(mask, RULES), broken, mask)
    outside = mask == 0
    assert torch.equal(edit.image[:, outside], image[:, outside]) and torch.isfinite(edit.image).all()
    assert [record.getMessage() for record in caplog.records] == [
        "The edit could not be compared with the image and is used as it is (the edit has NaN or infinity)."
    ]
    assert str(edit.kept).endswith("not moved: a shift cannot be told (the comparison failed)")


def test_regions_are_edited_one_after_the_other():
    image, mask = textured(900, 900), torch.zeros(900, 900)
    mask[100:160, 100:160] = mask[100:160, 700:760] = mask[700:760, 400:460] = 1
    painter = Painter()
    edits = edit_regions(image, plan(mask, RULES), painter, mask, count=2)
    assert len(painter.seen) == 6 and painter.seen[0] is painter.seen[1] and painter.seen[2] is not painter.seen[3]
    for edit in edits:
        assert [region.box[:2] for region in edit.kept.regions] == [(66, 66), (666, 66), (366, 666)]
        assert torch.equal(edit.image[:, mask == 0], image[:, mask == 0])
        assert all(edit.image[0, row, column] > 0.85 for row, column in ((130, 130), (130, 730), (730, 430)))
    assert str(edits[0].kept).startswith("kept 98.6 % of the pixels around 3 regions; region 1: ")


def test_a_region_sees_what_the_one_before_became():
    image, mask = textured(), torch.zeros(SIDE, SIDE)
    mask[100:150, 100:150] = mask[100:150, 175:225] = 1
    first, second = plan(mask, RULES)
    assert first.box.left + 128 * 5 // 8 > second.box.left, "it has a part of what was painted"
    painter = Painter()
    edit_regions(image, [first, second], painter, mask)
    before, seen = (unit_pixels(one) for one in (second.shown(image), painter.seen[1]))
    assert (seen - before).abs()[:, 48:80, :4].max() > 0.3
    assert torch.equal(seen[:, :, 20:], before[:, :, 20:])


def test_a_region_is_the_edit_of_the_crop_alone():
    image, mask = textured(900, 900), torch.zeros(900, 900)
    mask[400:500, 400:500] = 1
    (region,) = plan(mask, RULES)
    painter = Painter()
    (edit,) = edit_regions(image, [region], painter, mask)
    crop = region.box.cut(image)
    (alone,) = painter([region.shown(crop.new_zeros(3, 900, 900).copy_(image))], region.fit.height, region.fit.width)
    inner = slice(440, 460)
    change = edit.image[:, inner, inner]
    place = slice(440 - region.box.top, 460 - region.box.top), slice(440 - region.box.left, 460 - region.box.left)
    expected = torch.nn.functional.interpolate(
        alone[None], (region.box.height, region.box.width), mode="bicubic", antialias=True
    )[0][:, place[0], place[1]]
    assert torch.allclose(change, expected, atol=0.01)


def test_an_empty_mask_runs_nothing():
    image = textured()

    def never(*arguments):
        raise AssertionError

    mask = torch.zeros(SIDE, SIDE)
    (edit,) = edit_regions(image, plan(mask, RULES), never, mask)
    assert torch.equal(edit.image, image) and edit.change_mask.max() == 0
    assert str(edit.kept) == "kept 100.0 % of the pixels; the mask is empty"


def test_five_edits_in_a_row_keep_what_none_of_them_marks():
    image = first = textured(300, 400)
    marked = torch.zeros(300, 400)
    for left in range(20, 320, 60):
        mask = torch.zeros(300, 400)
        mask[100:160, left : left + 50] = 1
        marked = torch.maximum(marked, mask)
        (edit,) = edit_regions(image, plan(mask, RULES), Painter(shift=(1, 1), gain=0.97), mask)
        image = edit.image
    assert torch.equal(image[:, marked == 0], first[:, marked == 0])
    assert not torch.equal(image[:, marked > 0], first[:, marked > 0])


def test_masks_of_any_form():
    image = textured()
    for mask in (
        torch.ones(SIDE, SIDE),
        torch.zeros(SIDE, SIDE).index_put((torch.tensor(7), torch.tensor(9)), torch.tensor(1.0)),
        torch.zeros(SIDE, SIDE).index_fill(0, torch.arange(20), 1.0),
        torch.linspace(0, 1, SIDE).expand(SIDE, SIDE).contiguous(),
    ):
        (edit,) = edit_regions(image, plan(mask, RULES), Painter(), mask)
        assert torch.equal(edit.image[:, mask == 0], image[:, mask == 0])
        assert edit.change_mask.max() > 0.9
        assert torch.isfinite(edit.image).all()


def test_a_soft_mask_is_the_mixture():
    image, mask = textured(), torch.linspace(0, 1, SIDE).expand(SIDE, SIDE).contiguous()
    (edit,) = edit_regions(image, plan(mask, RULES), Painter(), mask)
    soft = (mask >= 0.1) & (mask < 0.99)
    assert torch.equal(edit.change_mask[soft], mask[soft])
    assert edit.change_mask[mask < 0.1].max() == 0


def test_grey_becomes_colours_and_a_fourth_channel_stays():
    grey, mask = textured()[:1], center(SIDE, SIDE)
    (edit,) = edit_regions(grey, plan(mask, RULES), Painter(), mask)
    outside = mask == 0
    assert edit.image.shape == (3, SIDE, SIDE)
    assert all(torch.equal(channel[outside], grey[0][outside]) for channel in edit.image)
    four = torch.cat([textured(), torch.linspace(0.5, 1, SIDE).expand(1, SIDE, SIDE)])
    (edit,) = edit_regions(four, plan(mask, RULES), Painter(), mask)
    assert torch.equal(edit.image[3], four[3]) and torch.equal(edit.image[:, outside], four[:, outside])


def test_the_report():
    found = EditedRegion(shift=(1.31, -2.62), certain=True)
    assert str(Kept(0.81365, (found,))) == "kept 81.3 % of the pixels; shift (1.3, -2.6) px undone"
    assert str(Kept(0.99999, (found,))).startswith("kept 99.9 %")
    larger = EditedRegion(scale=(0.01, 0.02), certain=True)
    assert str(larger) == "scale (1.00 %, 2.00 %) undone"
    assert str(EditedRegion(certain=True)) == "no shift"
    unknown = EditedRegion(reason="few")
    assert str(unknown) == "not moved: a shift cannot be told (too little unchanged texture)"
    assert Kept(0.5, (found,)).as_dict()["regions"][0]["shift"] == (1.31, -2.62)
