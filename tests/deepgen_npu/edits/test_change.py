"""What is marked as changed: on photographs with known edits for precision, on the demo's scenes for recall."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepgen_npu.edits.change import FINE_BELOW, compare, connected, find_change
from deepgen_npu.edits.colours import lab, length, without_drift
from deepgen_npu.edits.registration import Motion
from dev.synthetic_edits import (
    GLOBAL,
    LOCAL,
    cut,
    edited_under,
    levels,
    photograph,
    rectangle,
    redrawn,
    resized,
    size_to_cut,
    tensor,
)
from training.edits import random_edit
from training.scenes import CORE, pixels


NAMES = ("chelsea.png", "astronaut.png", "coffee.png")
REST = Motion((0.05, -0.06))
"""What a registration may leave."""


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photograph(name) for name in NAMES]


def visible(one: np.ndarray, other: np.ndarray, least: float = 6.0) -> np.ndarray:
    """Where colours differ by more than that, in Lab."""
    return (length(lab(tensor(one)) - lab(tensor(other))) > least).numpy()


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize(
    ("kind", "part"), [*((kind, 0.2) for kind in LOCAL), ("painted", 0.006), ("replaced", 0.6), ("recoloured", 0.6)]
)
def test_local_edits_are_found(photos, kind, part, number):
    rng = np.random.default_rng(number + 10)
    photo, other = photos[number], photos[(number + 1) % 3]
    size = size_to_cut(photo, 320, 384)
    image, mask = cut(photo, size), rectangle(size, part, rng)
    edit = redrawn(edited_under(mask, cut(photo, size, REST), kind, resized(other, size)), rng)
    change = find_change(tensor(image), tensor(edit))
    marked = change.mask.numpy() > 0
    wanted = mask & visible(image, edit)
    assert (marked & wanted).sum() / wanted.sum() >= 0.95
    # Around most of an image there is so little else that the rim of the mask counts.
    far = ~ndimage.binary_dilation(mask, iterations=6 if part < 0.5 else 12)
    assert (marked & far).sum() / far.sum() <= 0.03
    assert not change.is_global
    assert change.mask.shape == size and set(change.mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_nothing_is_marked_where_nothing_was_edited(photos, number):
    size = size_to_cut(photos[number], 320, 384)
    edit = redrawn(cut(photos[number], size, REST), np.random.default_rng(number))
    change = find_change(tensor(cut(photos[number], size)), tensor(edit))
    assert change.mask.mean() <= 0.01 and not change.is_global
    assert change.kept_structure > 0.8


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("kind", GLOBAL)
def test_global_edits_are_told(photos, kind, number):
    size = size_to_cut(photos[number], 256, 384)
    image, other = cut(photos[number], size), resized(photos[(number + 1) % 3], size)
    edit = redrawn(GLOBAL[kind](image, other).clip(0, 1), np.random.default_rng(number))
    assert find_change(tensor(image), tensor(edit)).is_global


@pytest.mark.parametrize("enlarged", [1, 6], ids=["as drawn", "at 384"])
@pytest.mark.parametrize("kind", ["recolour", "remove", "add"])
def test_edits_of_scenes_of_two_colours_are_found(kind, enlarged):
    """A drift of colours that is fitted freely would take such an edit for itself."""
    rng = random.Random(3)
    for _ in range(8 if enlarged == 1 else 3):
        edit = random_edit(rng, kind, CORE)
        image, result = (
            np.kron(pixels(scene) / 255, np.ones((enlarged, enlarged, 1))) for scene in (edit.sources[0], edit.target)
        )
        change = find_change(tensor(image), tensor(result))
        wanted = visible(image, result)
        assert (wanted & (change.mask.numpy() > 0)).sum() / wanted.sum() >= 0.9
        assert not change.is_global


def test_values_that_are_not_finite_make_it_global(photos):
    image = tensor(cut(photos[0], (64, 96)))
    edit = image.clone()
    edit[0, 3, 3] = torch.nan
    change = find_change(image, edit)
    assert change.is_global and bool(change.mask.all()) and change.mask.shape == (64, 96)
    assert find_change(image, image * 1e30).drift < 200


@pytest.mark.parametrize("size", [(352, 384), (224, 384)], ids=["both grids", "the fine one"])
def test_content_that_came_in_at_the_edges_is_not_marked(photos, size):
    """What lies beyond the edit's edges is not in it; its reflection is no change."""
    motion = Motion((6.3, -8.6))
    image, edit = cut(photos[1], size), redrawn(cut(photos[1], size, motion), np.random.default_rng(0))
    seen = motion.seen(*size)
    assert seen == (slice(0, size[0] - 6), slice(9, size[1]))
    aligned = motion.undone(tensor(edit))
    assert find_change(tensor(image), aligned).mask.mean() > 0.01
    assert find_change(tensor(image), aligned, seen=seen).mask.mean() < 0.002
    assert compare(tensor(image), tensor(edit)).change.mask.mean() < 0.002
    # What was changed at an edge is changed beyond it, too.
    image[:, -60:] = [0.1, 0.8, 0.1]
    image[:60] = [0.1, 0.8, 0.1]
    mask = find_change(tensor(image), aligned, seen=seen).mask
    assert bool(mask[:60].all()) and bool(mask[:, -60:].all()) and mask[80:, :-80].mean() < 0.01


@pytest.mark.parametrize("size", [(FINE_BELOW - 1, 301), (257, 301), (16, 40)], ids=str)
def test_odd_sides_and_both_grids(photos, size):
    image = tensor(cut(photos[1], size))
    edit = image.clone()
    edit[:, size[0] // 2 :, size[1] - 12 :] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    change = find_change(image.half(), edit.half())
    assert change.mask.shape == size
    assert bool(change.mask[size[0] // 2 :, size[1] - 12 :].all())
    assert change.mask[: size[0] // 2 - 8].sum() == 0
    computed_wide = find_change(image.half().float(), edit.half().float())
    assert torch.equal(computed_wide.mask, change.mask) and computed_wide.drift == change.drift


@pytest.mark.parametrize("part", [0.0, 0.02, 0.2, 0.4, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (60, 83)], ids=str)
def test_connected_parts_are_those_of_scipy(shape, part):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < part
    labels, count = ndimage.label(mask.numpy(), np.ones((3, 3)))
    found = connected(mask)
    assert int(found.max()) == count and torch.equal(found > 0, mask)
    assert len(set(zip(labels.flat, found.flatten().tolist(), strict=True))) == len(np.unique(labels))


def test_a_long_spiral_is_one_part():
    mask = torch.zeros(65, 65, dtype=torch.bool)
    for ring in range(0, 32, 2):
        mask[ring, max(0, ring - 2) : 65 - ring] = True
        mask[ring : 65 - ring, 64 - ring] = True
        mask[64 - ring, ring : 65 - ring] = True
        mask[ring + 2 : 65 - ring, ring] = True
    assert int(connected(mask).max()) == ndimage.label(mask.numpy(), np.ones((3, 3)))[1] == 1


def test_colours_are_those_of_lab():
    colours = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).T[:, None].float()
    # By the definition of CIE, for sRGB and D65, to two digits.
    wanted = [
        [100, 0, 0],
        [0, 0, 0],
        [53.24, 80.09, 67.2],
        [87.73, -86.18, 83.18],
        [32.3, 79.19, -107.86],
        [53.39, 0, 0],
    ]
    assert (lab(colours)[:, 0].T - torch.tensor(wanted)).abs().max() < 0.02


def test_a_drift_is_measured_and_followed():
    before = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(5)) * 60
    offset = torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    after = before + offset
    after[:, 10:20, 10:20] += 50
    drifted, drift = without_drift(before, after, torch.ones(60, 80), 24.0)
    assert drift == pytest.approx(14**0.5, abs=0.1)
    assert (drifted - before - offset).abs().max() < 0.5


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6])
def test_the_drift_is_that_of_the_rest_though_most_was_edited(part):
    """What is edited has another colour, and the same structure: nothing but that tells which of both is the drift."""
    before = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(5)) * 60
    edited = torch.zeros(60, 80, dtype=torch.bool)
    edited[:, : int(80 * part)] = True
    after = before + torch.tensor([2.0, -1.0, 1.0])[:, None, None]
    after[:, edited] += torch.tensor([15.0, 20.0, -10.0])[:, None]
    drifted, drift = without_drift(before, after, torch.ones(60, 80), 24.0)
    assert drift == pytest.approx(6**0.5, abs=0.3)
    assert length(after - drifted)[edited].gt(20).all()
    assert length(after - drifted)[~edited].lt(1).all()


def test_a_large_drift_of_everything_is_none_of_a_part():
    before = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(5)) * 60
    after = before + torch.tensor([15.0, 20.0, -10.0])[:, None, None]
    drifted, drift = without_drift(before, after, torch.ones(60, 80), 24.0)
    assert drift == pytest.approx(725**0.5, abs=0.5) and length(after - drifted).max() < 1


def test_what_does_not_correlate_does_not_tell_the_drift():
    """Six tenths replaced by something else that has a colour in common."""
    generator = torch.Generator().manual_seed(6)
    before = torch.rand(3, 60, 80, generator=generator) * 20 + 30
    after = before.clone()
    after[:, :, :48] = torch.rand(3, 60, 48, generator=generator) * 20 + 60
    weights = torch.full((60, 80), 0.9)
    weights[:, :48] = 0.1
    drifted, drift = without_drift(before, after, weights, 24.0)
    assert drift < 1 and length(after - drifted)[:, 48:].max() < 1


def test_photographs_are_edited_under_the_mask_alone(photos):
    """The synthetic edits are what the figures rest on."""
    size = size_to_cut(photos[0])
    image, mask = cut(photos[0], size), rectangle(size, 0.1, np.random.default_rng(0))
    assert mask.mean() == pytest.approx(0.1, rel=0.02)
    for kind in LOCAL:
        edit = edited_under(mask, image, kind, resized(photos[1], size))
        assert np.array_equal(levels(edit)[~mask], levels(image)[~mask])
        assert visible(edit, image)[mask].mean() > 0.7
