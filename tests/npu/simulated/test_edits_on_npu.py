"""An edit that keeps the rest, with images that are on the card: ComfyUI keeps them there with --gpu-only."""

from __future__ import annotations

import torch

from deepgen_npu.edits.region import plan
from deepgen_npu.edits.run import edit_regions
from deepgen_npu.images import unit_pixels
from deepgen_npu.sizes import SizeRules


def test_the_result_is_where_the_image_is_and_the_same():
    image, mask = torch.rand(3, 96, 130, generator=torch.Generator().manual_seed(0)), torch.zeros(96, 130)
    mask[30:60, 40:90] = 1

    def draw(shown, height, width):
        return torch.stack([1 - unit_pixels(one) for one in shown]).to("npu")

    regions = plan(mask, SizeRules(16, 32, 32, 8, 6144, 64))
    (here,), (there,) = (edit_regions(one, regions, draw, mask, True) for one in (image, image.to("npu")))
    assert there.image.device.type == "npu"
    assert torch.equal(there.image.cpu(), here.image) and torch.equal(there.change_mask, here.change_mask)
