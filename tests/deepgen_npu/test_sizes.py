"""Size rules of the published configs, and sizes that follow an image."""

from __future__ import annotations

import re

import pytest

from deepgen_npu.errors import CheckpointError
from deepgen_npu.sizes import SizeRules, nearest_sides


PUBLISHED = {
    "transformer": {"patch_size": 2, "pos_embed_max_size": 384},
    "vae": {"block_out_channels": [128, 256, 512, 512]},
    "vision": {"patch_size": 14, "spatial_merge_size": 2},
}
RULES = SizeRules.from_configs(**PUBLISHED)


def test_published_rules():
    assert (
        SizeRules(
            generation_multiple=16,
            editing_multiple=32,
            vision_cell=32,
            vae_factor=8,
            longest_side=6144,
            trained_side=512,
        )
        == RULES
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((64, 64), (512, 512)),
        ((4000, 4000), (512, 512)),
        ((1080, 1920), (384, 704)),
        ((1920, 1080), (704, 384)),
        ((400, 600), (448, 640)),
        ((1, 1000), (32, 6144)),
    ],
)
def test_the_size_follows_an_image(size, expected):
    """Scaled by 512 / sqrt(h w) and rounded up to 32, as the original prepared its training data."""
    assert RULES.match_aspect(*size) == expected
    RULES.check(*expected, editing=True)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((3000, 4000), (448, 608)),
        ((2000, 3000), (448, 672)),  # 640 x 448 would be 5 % off
        ((1080, 1920), (384, 672)),
        ((1350, 1080), (608, 480)),
        ((832, 1216), (416, 608)),
        ((100, 3000), (96, 2880)),
        ((1, 64), (64, 4096)),
    ],
)
def test_the_size_with_the_least_padding(size, expected):
    """Of all multiples of 32 with an area within 15 % of the trained one."""
    assert RULES.least_padding(*size) == expected
    RULES.check(*expected, editing=True)


def test_a_shape_that_nothing_fits_is_padded_in_the_stretched_size():
    rules = SizeRules.from_configs(**{**PUBLISHED, "transformer": {"patch_size": 2, "pos_embed_max_size": 2}})
    assert rules.least_padding(100, 1000) == rules.match_aspect(100, 1000) == (32, 32)


def test_a_small_model_follows_within_its_limits():
    rules = SizeRules.from_configs(**{**PUBLISHED, "transformer": {"patch_size": 2, "pos_embed_max_size": 24}})
    assert rules.longest_side == rules.trained_side == 384
    assert rules.match_aspect(512, 512) == (384, 384)
    assert rules.match_aspect(100, 1000) == (128, 384)


@pytest.mark.parametrize(("side", "editing"), [(16, False), (6144, False), (32, True), (6144, True), (48, False)])
def test_allowed(side, editing):
    RULES.check(side, side, editing)


@pytest.mark.parametrize(
    ("side", "editing", "nearest"),
    [(500, False, "496, 512"), (50, True, "32, 64"), (8, False, "16"), (-5, False, "16"), (6160, False, "6144")],
)
def test_refused_with_the_nearest(side, editing, nearest):
    multiple = 32 if editing else 16
    expected = f"width must be a multiple of {multiple} from {multiple} to 6144, got {side} (nearest: {nearest})."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        RULES.check(512, side, editing)


def test_a_side_that_only_generation_allows():
    assert RULES.check(784, 512, editing=False) == (784, 512)
    expected = (
        "height must be a multiple of 32 from 32 to 6144, got 784 (nearest: 768, 800). "
        "Editing takes multiples of 32, generation of 16."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        RULES.check(784, 512, editing=True)


def test_the_wrong_side_of_two_is_named():
    """Of 768 x 512, so that height and width cannot be confused."""
    for height, width, name in ((512, 770, "width"), (510, 768, "height")):
        with pytest.raises(ValueError, match=rf"^{name} must be a multiple of 16 from 16 to 6144, got (770|510) "):
            RULES.check(height, width, editing=False)


@pytest.mark.parametrize("side", ["512", 512.0, None, True])
def test_sides_are_integers(side):
    with pytest.raises(ValueError, match=rf"^height must be a multiple of 16 from 16 to 6144, got {side!r}\.$"):
        RULES.check(side, 512, editing=False)


def test_nearest_sides():
    assert nearest_sides(500, 16, 6144) == (496, 512)
    assert nearest_sides(496, 16, 6144) == (496,)
    assert nearest_sides(0, 16, 6144) == (16,)
    assert nearest_sides(9999, 16, 6144) == (6144,)


def test_a_tower_that_sees_half_pixels_is_refused():
    with pytest.raises(CheckpointError, match=r"must cover an integer number of pixels, got 17\.14"):
        SizeRules.from_configs(**{**PUBLISHED, "vision": {"patch_size": 15, "spatial_merge_size": 1}})
