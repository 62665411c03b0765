"""Images between ComfyUI and PIL, and the sizes at which they are drawn and shown: pure functions, without ComfyUI."""

from __future__ import annotations

import pytest
import torch
from load_module import pack_module
from PIL import Image


images = pack_module("nodes.images")
names = pack_module("nodes.names")
SizeRules = pack_module("deepgen_npu.sizes").SizeRules
Fit = pack_module("deepgen_npu.edits.fitting").Fit

DEEPGEN = SizeRules(
    generation_multiple=16, editing_multiple=32, vision_cell=32, vae_factor=8, longest_side=6144, trained_side=512
)
DEMO = SizeRules(
    generation_multiple=16, editing_multiple=32, vision_cell=32, vae_factor=8, longest_side=128, trained_side=64
)


def image(batch: int = 1, height: int = 4, width: int = 6, fill: float = 0.5) -> torch.Tensor:
    return torch.full((batch, height, width, 3), fill)


class TestToPil:
    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
    def test_a_batch_is_one_image_each(self, channels, mode):
        found = images.to_pil(torch.rand(2, 4, 6, channels))
        assert [(one.mode, one.size) for one in found] == [(mode, (6, 4))] * 2

    @pytest.mark.parametrize(
        ("value", "level"),
        [(0.0, 0), (1 / 255, 1), (0.9999 / 255, 0), (0.5, 127), (0.9999, 254), (1.0, 255), (-0.5, 0), (300.0, 255)],
    )
    def test_levels_are_rounded_down_and_clamped(self, value, level):
        (found,) = images.to_pil(image(fill=value))
        assert found.getpixel((0, 0)) == (level,) * 3

    def test_every_level_of_a_file_comes_back(self):
        """What LoadImage makes of a file, so that saving and loading between two nodes changes nothing."""
        levels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16, 1) / 255
        (found,) = images.to_pil(levels)
        assert list(found.tobytes()) == list(range(256))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        (found,) = images.to_pil(image(fill=0.25).to(dtype))
        assert found.getpixel((0, 0)) == (63,) * 3


def test_to_image_puts_the_channels_last():
    pixels = torch.rand(2, 3, 4, 6)
    found = images.to_image(pixels)
    assert found.shape == (2, 4, 6, 3) and found.is_contiguous()
    assert torch.equal(found[1, 2, 5], pixels[1, :, 2, 5])


class TestReferenceGroups:
    def levels(self, **given) -> list[list[int]]:
        return [[one.getpixel((0, 0))[0] for one in group] for group in images.reference_groups(**given)]

    def test_none(self):
        assert images.reference_groups() == images.reference_groups(image=None, image_2=None) == [[]]

    def test_one_reference_is_for_all_images_and_a_batch_one_for_each(self):
        batch = torch.cat([image(fill=level / 255) for level in (10, 20)])
        both = torch.cat([image(fill=level / 255) for level in (30, 40)])
        one = image(fill=50 / 255)
        assert self.levels(image=batch) == [[10], [20]]
        assert self.levels(image=batch, image_2=None, image_3=both, image_4=one) == [[10, 30, 50], [20, 40, 50]]

    def test_they_are_pil_images_of_their_own_sizes(self):
        ((first, second),) = images.reference_groups(image=image(), image_2=image(height=9, width=5))
        assert isinstance(first, Image.Image) and (first.size, second.size) == ((6, 4), (5, 9))

    @pytest.mark.parametrize(
        ("batch", "other", "message"),
        [
            (2, 3, "image_2 has 3 images but image has 2: use 1 or 2."),
            (1, 2, "image_2 has 2 images but image has 1: use 1."),
        ],
    )
    def test_batches_that_do_not_go_together(self, batch, other, message):
        with pytest.raises(ValueError) as caught:
            images.reference_groups(image=image(batch), image_2=image(other))
        assert str(caught.value) == message


class TestDrawingSize:
    def test_deepgen_draws_what_was_asked_for(self):
        assert images.pixel_size(DEEPGEN) == 1
        assert images.drawing_size(DEEPGEN, 512, 768, editing=False) == (512, 768)
        assert images.drawing_size(DEEPGEN, 6144, 16, editing=False) == (6144, 16)

    @pytest.mark.parametrize(("editing", "side"), [(False, 500), (True, 528), (False, 6160)])
    def test_deepgen_refuses_other_multiples_and_what_is_too_large(self, editing, side):
        with pytest.raises(ValueError, match=r"^width "):
            images.drawing_size(DEEPGEN, 512, side, editing)

    @pytest.mark.parametrize(
        ("size", "editing", "drawn"),
        [
            ((512, 512), False, (64, 64)),
            ((768, 512), False, (96, 64)),
            ((512, 592), False, (64, 80)),
            ((16, 1024), False, (16, 128)),
            ((512, 768), True, (64, 96)),
            ((512, 640), True, (64, 64)),
            ((32, 1024), True, (32, 128)),
        ],
    )
    def test_the_demo_draws_an_eighth_rounded_to_its_multiple(self, size, editing, drawn):
        assert images.pixel_size(DEMO) == 8
        assert images.drawing_size(DEMO, *size, editing=editing) == drawn

    @pytest.mark.parametrize("name", ["height", "width"])
    def test_the_demo_refuses_what_is_too_large_in_the_terms_of_the_node(self, name):
        with pytest.raises(ValueError) as caught:
            images.drawing_size(DEMO, **({"height": 512, "width": 512} | {name: 1536}), editing=False)
        assert str(caught.value) == f"{name} must be at most 1024 with this model, got 1536."


class TestEditingFit:
    """Of an image of 600 x 400: (height, width) drawn and shown. The sides of the widgets are 256 and 512."""

    @pytest.mark.parametrize(
        ("mode", "rules", "drawn", "shown"),
        [
            (names.FOLLOW, DEEPGEN, (448, 640), (448, 640)),
            (names.RESTORE, DEEPGEN, (448, 640), (400, 600)),
            (names.CUSTOM, DEEPGEN, (256, 512), (256, 512)),
            (names.FOLLOW, DEMO, (64, 96), (512, 768)),
            (names.RESTORE, DEMO, (64, 96), (400, 600)),
            (names.CUSTOM, DEMO, (32, 64), (256, 512)),
        ],
    )
    def test_three_modes_stretch(self, mode, rules, drawn, shown):
        found = images.editing_fit(rules, image(height=400, width=600), mode, 256, 512)
        assert found == (Fit.stretched(*drawn), shown)

    @pytest.mark.parametrize(
        ("rules", "size", "fit", "shown"),
        [
            (DEEPGEN, (400, 600), Fit.stretched(448, 672), (448, 672)),
            (DEEPGEN, (3000, 4000), Fit(448, 608, 0, 5, 448, 597), (448, 597)),
            (DEEPGEN, (1350, 1080), Fit(608, 480, 4, 0, 600, 480), (600, 480)),
            (DEMO, (400, 600), Fit(64, 64, 10, 0, 43, 64), (344, 512)),
        ],
    )
    def test_one_pads(self, rules, size, fit, shown):
        found = images.editing_fit(rules, image(height=size[0], width=size[1]), names.PADDED, 7, 33)
        assert found == (fit, shown)

    @pytest.mark.parametrize("mode", [names.FOLLOW, names.RESTORE])
    def test_the_sides_of_the_widgets_do_not_count_otherwise(self, mode):
        images.editing_fit(DEEPGEN, image(height=400, width=600), mode, 7, 33)

    def test_another_mode(self):
        with pytest.raises(ValueError) as caught:
            images.editing_fit(DEEPGEN, image(), "as it comes", 512, 512)
        modes = "'follow image, no distortion', 'follow image', 'width and height', 'size of image'"
        assert str(caught.value) == f"size_mode must be one of {modes}, got 'as it comes'."


class TestPixels:
    def test_a_pixel_is_enlarged_to_a_square(self):
        pixels = torch.arange(6.0).reshape(1, 1, 2, 3)
        large = images.enlarge(pixels, 2)
        assert large[0, 0].tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]]
        assert torch.equal(images.shrink(large, 2), pixels)

    def test_a_square_is_shrunk_to_its_mean(self):
        assert images.shrink(torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]), 2).tolist() == [[[[2.0]]]]

    def test_once_is_as_it_is(self):
        pixels = torch.rand(1, 3, 4, 6)
        assert images.enlarge(pixels, 1) is images.shrink(pixels, 1) is pixels


class TestResize:
    def test_the_same_size_is_the_same_tensor(self):
        pixels = torch.rand(1, 3, 4, 6)
        assert images.resize(pixels, 4, 6, DEEPGEN) is images.resize(pixels, 4, 6, DEMO) is pixels

    def test_deepgen_is_resized_smoothly_within_0_and_1(self):
        edge = torch.zeros(1, 3, 8, 8)
        edge[..., 4:] = 1
        found = images.resize(edge, 12, 20, DEEPGEN)
        assert found.shape == (1, 3, 12, 20)
        assert found.min() == 0 and found.max() == 1, "bicubic overshoots at an edge"
        assert ((found > 0.2) & (found < 0.8)).any()

    def test_the_demo_keeps_its_squares(self):
        edge = torch.zeros(1, 3, 8, 8)
        edge[..., 4:] = 0.7
        found = images.resize(edge, 12, 20, DEMO)
        assert found.shape == (1, 3, 12, 20)
        assert set(found.unique().tolist()) == set(edge.unique().tolist())
