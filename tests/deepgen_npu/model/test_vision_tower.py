"""The vision tower against what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from deepgen_npu.model.vision_tower import IMAGE_MEAN, IMAGE_STD, encode_references, to_patches


def test_patches_are_those_of_the_image_processor():
    picture = np.random.default_rng(0).integers(0, 256, (112, 84, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessor(
        do_resize=False, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD), patch_size=14, merge_size=2
    )
    expected = processor(Image.fromarray(picture), return_tensors="pt")
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    patches = to_patches((pixels - mean) / std, patch=14, temporal=2, merge=2)
    assert expected["image_grid_thw"].tolist() == [[1, 8, 6]]
    torch.testing.assert_close(patches[0].float(), expected["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cells", [(4, 4), (8, 4), (5, 5), (3, 1), (7, 9)])
@pytest.mark.parametrize("pictures", [1, 2])
def test_the_tower_computes_what_the_stock_tower_computes(pipe, cells, pictures):
    """Whole windows (sides of 4 cells here), and such that the far edges cut."""
    config = pipe.vlm.config.vision_config
    assert config.window_size // config.patch_size // config.spatial_merge_size == 4
    assert 0 < len(config.fullatt_block_indexes) < config.depth
    height, width = cells[0] * 32, cells[1] * 32
    pixels = torch.randn(pictures, 3, height, width, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            stock = encode_references(pipe.vlm, pixels)
    finally:
        config._attn_implementation = "sdpa"
    with torch.no_grad():
        ours = encode_references(pipe.vlm, pixels)
    assert ours.shape == (pictures, cells[0] * cells[1], pipe.vlm.config.get_text_config().hidden_size)
    torch.testing.assert_close(ours, stock, atol=2e-5, rtol=1e-4)


def test_references_are_encoded_independently(pipe):
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.no_grad():
        together = encode_references(pipe.vlm, pixels)
        apart = torch.cat([encode_references(pipe.vlm, pixels[:1]), encode_references(pipe.vlm, pixels[1:])])
    assert together.shape == (2, 25, 32)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
