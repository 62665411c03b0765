"""Whether motions are found, and whether nothing is moved where nothing is certain."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from deepgen_npu.edits.registration import NOISE, Motion, Numbers, Registration, _doubt, register
from deepgen_npu.edits.votes import Votes
from dev.synthetic_edits import (
    HARD,
    cut,
    distance,
    edited_under,
    moved,
    photograph,
    rectangle,
    redrawn,
    resized,
    size_to_cut,
    tensor,
)
from training.edits import random_edit
from training.scenes import CORE, pixels


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photograph(name) for name in ("chelsea.png", "astronaut.png", "coffee.png")]


def found(
    photos: list[np.ndarray], number: int, motion: Motion, part: float, *, hard: bool
) -> tuple[Registration, float]:
    """What is found where a part was replaced, and how far it is off."""
    rng = np.random.default_rng(number)
    photo, other = photos[number % 3], photos[(number + 1) % 3]
    size = size_to_cut(photo, 320, 384)
    edit = edited_under(rectangle(size, part, rng), cut(photo, size, motion), "replaced", resized(other, size))
    if hard:
        edit = redrawn(edit, rng, **HARD)
    result = register(tensor(cut(photo, size)), tensor(edit))
    return result, distance(result.motion, motion, size)


@pytest.mark.parametrize("hard", [False, True], ids=["a third replaced", "and redrawn"])
@pytest.mark.parametrize("shift", [(0.3, -0.3), (2.5, -1.2), (-7.7, 2.5), (12.0, 7.7)], ids=str)
def test_shifts_are_found(photos, shift, hard):
    result, error = found(photos, int(10 * abs(shift[0])), Motion(shift), 1 / 3, hard=hard)
    assert result.certain and result.reason == "" and result.agreeing >= 8
    assert error < 0.1


@pytest.mark.parametrize("scale", [(0.03, -0.03), (-0.03, 0.0), (0.02, 0.02)], ids=str)
def test_scales_are_found(photos, scale):
    result, error = found(photos, 1, Motion((1.3, -2.6), scale), 1 / 3, hard=True)
    assert result.certain and error < 0.1


@pytest.mark.parametrize("number", range(3))
def test_what_did_not_move_is_not_moved(photos, number):
    result, _ = found(photos, number, Motion(), 1 / 3, hard=True)
    assert result.certain
    assert result.motion.moves(320, 384) < NOISE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision(photos, dtype):
    size = size_to_cut(photos[0])
    image, edit = (tensor(cut(photos[0], size, motion)).to(dtype) for motion in (Motion(), Motion((2.5, -1.2))))
    result = register(image, edit)
    assert result.certain and distance(result.motion, Motion((2.5, -1.2)), size) < 0.1


def test_what_is_known_to_have_changed_does_not_count(photos):
    """Two thirds move to one side, a third to the other: who is right is for the mask to say."""
    size = size_to_cut(photos[1], 384, 384)
    image, edit = cut(photos[1], size), cut(photos[1], size, Motion((3.0, 4.0)))
    changed = np.zeros(size, np.float32)
    changed[:, :256] = 1
    edit = np.where(changed[..., None] > 0, cut(photos[1], size, Motion((-5.0, 2.0))), edit)
    known = register(tensor(image), tensor(edit), torch.from_numpy(changed))
    assert known.certain and distance(known.motion, Motion((3.0, 4.0)), size) < 0.1
    unknown = register(tensor(image), tensor(edit))
    assert not unknown.certain or distance(unknown.motion, Motion((3.0, 4.0)), size) > 1


def nothing_is_moved(result: Registration, *reasons: str) -> None:
    assert not result.certain and result.motion == Motion()
    assert result.reason in reasons


def test_different_photographs_are_not_registered(photos):
    images = [tensor(resized(photo, (320, 384))) for photo in photos]
    for one, other in zip(images, images[1:] + images[:1], strict=True):
        nothing_is_moved(register(one, other), "few", "far")


def test_plain_colours_and_gratings_are_not_registered(photos):
    plain = torch.full((3, 256, 256), 0.5)
    nothing_is_moved(register(plain, plain), "few")
    nothing_is_moved(register(tensor(cut(photos[0], (256, 256))), plain), "few")
    waves = 0.5 + 0.4 * torch.sin(torch.arange(264) * (2 * torch.pi / 8))
    upright = waves.expand(3, 256, -1)
    # Along its bars nothing can be told of a grating, and it looks the same after each period.
    nothing_is_moved(register(upright[..., :256], upright[..., 3:259]), "few")


def test_two_answers_are_none(photos):
    """A third of the image moved for itself, and has the texture."""
    size = (320, 384)
    rng = np.random.default_rng(2)
    image = cut(photos[1], size)
    image[:, 200:] = image[:, 200:].mean((0, 1))  # plain: the half that moves has all that can be told
    textured = np.zeros(size, bool)
    textured[20:300, 16:96] = True
    edit = redrawn(moved(image, textured, 6, -8), rng)
    result = register(tensor(image), tensor(edit))
    assert not result.certain or result.motion.moves(*size) < 0.2
    assert result.reason in ("", "two", "scatter", "few")


def test_each_doubt_is_named():
    found, rival, beside = ((3.0, 4.0, 0.0, 0.0), (-5.0, 2.0, 0.0, 0.0), (3.5, 4.5, 0.0, 0.0))

    def votes(agreeing: int, residual: float = 0.0, others: int = 0, textured: int = 0) -> Votes:
        residuals = torch.tensor([[residual, 0.0]] * agreeing + [[2.0, 0.0]] * others)
        return Votes(torch.zeros_like(residuals), residuals, max(textured, agreeing + others))

    def doubt(motion: Numbers, own: Votes, *answers: tuple[Numbers, Votes]) -> str:
        return _doubt(motion, own, [(motion, own), *answers], torch.Size((384, 512)))

    assert doubt(found, votes(30)) == doubt(found, votes(30), (rival, votes(15)), (beside, votes(29))) == ""
    assert doubt(found, votes(30), (rival, votes(16))) == "two"
    assert doubt(found, votes(7)) == doubt(found, votes(30, textured=201)) == "few"
    assert doubt((18.5, 0.0, 0.0, 0.0), votes(30)) == doubt((0.0, 0.0, 0.0, 0.06), votes(30)) == "far"
    assert doubt(found, votes(30, others=21)) == "scatter"
    assert doubt(found, votes(30, residual=0.15)) == "spread"


@pytest.mark.parametrize("number", range(3))
def test_a_tenth_that_was_left_alone_is_moved_rightly_or_not_at_all(photos, number):
    result, error = found(photos, number, Motion((4.0, -3.0)), 0.9, hard=True)
    assert error < 0.2 if result.certain else result.reason in ("few", "scatter", "spread", "two", "far")


def test_drawings_without_texture_are_not_registered():
    """The demo's scenes have two or three plain colours; whatever is changed in them, nothing may be moved."""
    rng = random.Random(3)
    for kind in ("recolour", "replace", "move"):
        edit = random_edit(rng, kind, CORE)
        image, result = (pixels(scene).astype(float) / 255 for scene in (edit.sources[0], edit.target))
        nothing_is_moved(register(tensor(image), tensor(result)), "few", "far")
        large = (tensor(resized(one, (512, 512))) for one in (image, result))
        assert register(*large).motion.moves(512, 512) < NOISE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(photos, value):
    image = tensor(cut(photos[0], (256, 256)))
    edit = image.clone()
    edit[1, 100, 7] = value
    nothing_is_moved(register(image, edit), "failed")


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 16), (1, 1), (8, 300), (200, 17)], ids=str)
def test_small_images_are_refused(photos, size):
    image, edit = (cut(photos[0], size, motion) for motion in (Motion(), Motion((1.0, 1.0))))
    nothing_is_moved(register(tensor(image), tensor(edit)), "few")


def test_values_far_outside_are_no_error(photos):
    image = tensor(cut(photos[0], (256, 256)))
    nothing_is_moved(register(image, image * 1e30), "few", "far")


def test_a_motion_that_is_undone_gives_the_image_back(photos):
    size = size_to_cut(photos[1])
    motion = Motion((2.4, -3.3), (0.02, -0.01))
    image, edit = tensor(cut(photos[1], size)), tensor(cut(photos[1], size, motion))
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert (motion.undone(edit) - image)[inner].abs().mean() < 0.01
    assert (edit - image)[inner].abs().mean() > 0.04
    # The corner: 2.4 + 0.02 x half of the height, and so on.
    height, width = size
    assert motion.moves(*size) == pytest.approx(np.hypot(2.4 + 0.01 * (height - 1), 3.3 + 0.005 * (width - 1)))
