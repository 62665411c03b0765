"""Size rules of the published configs, and sizes that follow a picture."""

from __future__ import annotations

import pytest

from deepgen_npu.errors import CheckpointError
from deepgen_npu.sizes import SizeRules


PUBLISHED = {
    "transformer": {"patch_size": 2, "pos_embed_max_size": 384},
    "vae": {"block_out_channels": [128, 256, 512, 512]},
    "vision": {"patch_size": 14, "spatial_merge_size": 2},
}
RULES = SizeRules.from_configs(**PUBLISHED)


def test_published_rules():
    assert RULES == SizeRules(
        generation_multiple=16, editing_multiple=32, vision_cell=32, vae_factor=8, longest_side=6144, trained_side=512
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
def test_following_a_picture(size, expected):
    """Scaled by 512 / sqrt(h w) and rounded up to 32, as the original prepared its training data."""
    assert RULES.match_aspect(*size) == expected
    RULES.check(*expected, editing=True)


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
    [(500, False, "496 or 512"), (48, True, "32 or 64"), (8, False, "16"), (-5, False, "16"), (6160, False, "6144")],
)
def test_refused_with_the_nearest(side, editing, nearest):
    with pytest.raises(ValueError, match=rf"width is {side}.*Nearest: {nearest}\."):
        RULES.check(512, side, editing)


def test_a_tower_that_sees_half_pixels_is_refused():
    with pytest.raises(CheckpointError, match="whole ones are wanted"):
        SizeRules.from_configs(**{**PUBLISHED, "vision": {"patch_size": 15, "spatial_merge_size": 1}})
