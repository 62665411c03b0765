"""Edits that keep the rest, in a real ComfyUI: from the file that is loaded to the file that is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dev.comfyui.graphs import Graph, array, core, edit, encoding, ksampler, load_image, loader, save
from nodes.names import CUSTOM, DEMO, PADDED, RESTORE


MARKED = (slice(1200, 1500), slice(2000, 2500))
"""Rows and columns of an image of 4000 x 3000."""


def photo(width: int, height: int) -> np.ndarray:
    """[height, width, 3] with all 256 levels in each channel, and texture."""
    down, across = np.mgrid[:height, :width]
    channels = []
    for k in range(3):
        wave = np.sin(down / (5 + 9 * k)) * np.cos(across / (7 + 4 * k)) + 3 * (down + across) / (height + width)
        channels.append(np.abs(wave % 2 - 1))
    pixels = (np.stack(channels, -1) * 255.99).astype(np.uint8)
    assert all(len(np.unique(pixels[..., channel])) == 256 for channel in range(3))
    return pixels


def paint(folder: Path, name: str, pixels: np.ndarray, *marked: tuple[slice, slice]) -> None:
    """Save an image as the mask editor does: transparent where it may be changed."""
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    for rows, columns in marked:
        alpha[rows, columns] = 0
    Image.fromarray(np.dstack([pixels, alpha])).save(folder / name, compress_level=1)


def levels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def save_mask(node: str, index: int) -> Graph:
    return {"shown": core("MaskToImage", mask=[node, index]), "mask": save("shown")}


def small(mask: list[Any] | None = None, source: str = "image", **changes: Any) -> Graph:
    """An edit of the image ``a.png`` by the tiny model."""
    given = {"mask": mask} if mask else {}
    return {
        "loader": loader(),
        "image": load_image("a.png"),
        "edit": edit(source, **given, **changes),
        "saved": save("edit"),
    }


def test_outside_of_the_mask_not_one_level_of_a_large_photo_changes(comfy, comfy_client):
    pixels = np.tile(photo(400, 300), (10, 10, 1))
    paint(comfy.input, "large.png", pixels, MARKED)
    graph = {
        "loader": loader(DEMO),
        "image": load_image("large.png"),
        "edit": edit("image", mask=["image", 1], size_mode=PADDED, steps=2, prompt="make it red"),
        "saved": save("edit"),
    }
    result = comfy_client.run(graph, timeout=300)
    assert result.ok, result.error_text
    found = levels(result.images[0])
    assert found.shape == pixels.shape
    changed = (found != pixels).any(-1)
    assert changed[MARKED].mean() > 0.5
    changed[MARKED] = False
    assert not changed.any()
    assert "DeepGen: kept 98." in comfy.log_text()


class TestMasks:
    @pytest.fixture(autouse=True)
    def files(self, comfy):
        self.pixels = photo(300, 200)
        self.marked = slice(50, 120), slice(100, 190)
        paint(comfy.input, "a.png", self.pixels, self.marked)

    def run(self, comfy_client, graph: Graph) -> list[np.ndarray]:
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        return [levels(image) for image in result.images_of("saved")]

    def assert_kept(self, found: np.ndarray, *marked: tuple[slice, slice]) -> None:
        changed = (found != self.pixels).any(-1)
        for place in marked:
            assert changed[place].any()
            changed[place] = False
        assert not changed.any()

    @pytest.mark.parametrize(
        ("mode", "keep_unchanged"),
        [*((mode, False) for mode in (PADDED, "follow image", CUSTOM, "size of image")), (CUSTOM, True)],
    )
    def test_the_size_is_the_images_in_every_size_mode(self, comfy_client, mode, keep_unchanged):
        (found,) = self.run(comfy_client, small(["image", 1], size_mode=mode, keep_unchanged=keep_unchanged))
        self.assert_kept(found, self.marked)

    def test_the_change_mask_is_black_where_nothing_changed(self, comfy_client):
        result = comfy_client.run({**small(["image", 1]), **save_mask("edit", 1)})
        found, mask = levels(result.images_of("saved")[0]), levels(result.images_of("mask")[0])[..., 0]
        assert mask.max() == 255 and mask[self.marked].mean() > 128
        assert np.array_equal(found[mask == 0], self.pixels[mask == 0])
        outside = mask.copy()
        outside[self.marked] = 0
        assert outside.max() == 0
        plain = comfy_client.run({**small(), **save_mask("edit", 1)})
        assert levels(plain.images_of("mask")[0]).min() == 255

    def test_an_empty_mask_changes_nothing_and_runs_nothing(self, comfy, comfy_client):
        Image.fromarray(self.pixels).save(comfy.input / "a.png")  # without alpha: a mask of 64 x 64 zeros
        result = comfy_client.run(small(["image", 1], seed=999))
        assert result.ok, result.error_text
        self.assert_kept(levels(result.images[0]))
        assert not [one for one in result.progress if one.node == "edit" and one.max == 3]
        assert "the mask is empty" in comfy.log_text()

    def test_several_regions_with_one_progress_bar(self, comfy, comfy_client):
        self.pixels = photo(1500, 420)
        marked = [(slice(50, 120), slice(left, left + 60)) for left in (40, 700, 1400)]
        paint(comfy.input, "a.png", self.pixels, *marked)
        result = comfy_client.run(small(["image", 1]))
        assert result.ok, result.error_text
        self.assert_kept(levels(result.images[0]), *marked)
        assert [one.value for one in result.progress if one.node == "edit" and one.max == 9][-9:] == list(range(1, 10))

    def test_batches(self, comfy_client):
        twice = {"two": core("RepeatImageBatch", image=["image", 0], amount=2)}
        both = {**twice, "masks": core("ImageToMask", image=["two", 0], channel="red")}
        three = {"three": core("RepeatImageBatch", image=["image", 0], amount=3)}
        first, second = self.run(comfy_client, {**small(["image", 1], source="two"), **twice})
        assert not np.array_equal(first, second), "each has noise of its own"
        for found in (first, second):
            self.assert_kept(found, self.marked)
        (alone,) = self.run(comfy_client, small(["image", 1]))
        assert np.array_equal(alone, first)
        assert len(self.run(comfy_client, {**small(["masks", 0]), **both})) == 2, "one image, two masks"
        result = comfy_client.run({**small(["masks", 0], source="three"), **both, **three})
        assert "mask has 2 masks but image has 3 images: use 1, or as many." in result.error_text

    def test_a_mask_of_another_size_and_an_inverted_one(self, comfy_client):
        mask = {"other": core("SolidMask", value=1.0, width=30, height=20)}
        (found,) = self.run(comfy_client, {**small(["other", 0]), **mask})
        assert (found != self.pixels).any(-1).mean() > 0.9
        inverted = {"other": core("InvertMask", mask=["image", 1])}
        (found,) = self.run(comfy_client, {**small(["other", 0]), **inverted})
        assert np.array_equal(found[self.marked], self.pixels[self.marked])

    def test_cropping_and_putting_back_is_an_edit_under_a_mask(self, comfy_client):
        """The region's change is that of an edit of the crop alone."""
        crop = core("DeepGenCropRegion", image=["image", 0], mask=["image", 1], context=2.0)
        back = core("DeepGenPutBack", region=["crop", 2], image=["edit", 0], keep_unchanged=True)
        options = {"size_mode": PADDED, "steps": 2}
        own = {"loader": loader("DeepGen-1.0-diffusers"), "image": load_image("a.png")}
        apart = {**own, "crop": crop, "edit": edit("crop", **options), "back": back, "saved": save("back")}
        under = {
            **own,
            "edit": edit("image", mask=["image", 1], keep_unchanged=True, **options),
            "saved": save("edit"),
        }
        (first,), (second,) = self.run(comfy_client, apart), self.run(comfy_client, under)
        self.assert_kept(first, self.marked)
        assert np.array_equal(first, second)

    def test_inpainting_of_a_region_with_core_nodes(self, comfy_client):
        graph = {
            "loader": loader("DeepGen-1.0-diffusers"),
            "image": load_image("a.png"),
            "crop": core("DeepGenCropRegion", image=["image", 0], mask=["image", 1], context=1.5),
            "encode": encoding(image=["crop", 0], size_mode=RESTORE),
            "start": core("VAEEncode", pixels=["crop", 0], vae=["loader", 1]),
            "masked": core("SetLatentNoiseMask", samples=["start", 0], mask=["crop", 1]),
            "sample": ksampler(latent_image=["masked", 0], steps=2),
            "decode": core("VAEDecode", samples=["sample", 0], vae=["loader", 1]),
            "back": core("DeepGenPutBack", region=["crop", 2], image=["decode", 0]),
            "saved": save("back"),
        }
        (found,) = self.run(comfy_client, graph)
        self.assert_kept(found, self.marked)
        graph["back"]["inputs"]["image"] = ["image", 0]
        result = comfy_client.run(graph)
        assert "image must be 672 x 448, the size of the image from DeepGen Crop Region, got 300 x 200." in (
            result.error_text
        )


def test_no_distortion_by_default(comfy, comfy_client):
    info = comfy_client.object_info("DeepGenEdit")["DeepGenEdit"]["input"]["required"]["size_mode"][1]
    assert info["default"] == PADDED
    Image.fromarray(photo(400, 300)).save(comfy.input / "a.png")
    sizes = {}
    for mode in (PADDED, "follow image"):
        graph = small(size_mode=mode, steps=1)
        graph["loader"] = loader("DeepGen-1.0-diffusers")
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        sizes[mode] = result.images[0].size
    assert sizes == {PADDED: (597, 448), "follow image": (608, 448)}


def test_keep_unchanged_with_the_demo(comfy, comfy_client):
    """A shape changes its colour; what the edit left alone is the image's own."""
    graph = {
        "loader": loader(DEMO),
        "image": core(
            "DeepGenTextToImage",
            pipeline=["loader", 0],
            prompt="a red circle on the left on a white background",
            negative_prompt="",
            width=512,
            height=512,
            seed=1,
            steps=16,
            cfg=4.0,
            batch_size=1,
        ),
        "before": save("image"),
        "edit": edit("image", prompt="make it blue", size_mode=PADDED, steps=16, keep_unchanged=True),
        "saved": save("edit"),
        **save_mask("edit", 1),
    }
    result = comfy_client.run(graph)
    assert result.ok, result.error_text
    before, after = (array(result.images_of(name)[0]) for name in ("before", "saved"))
    mask = array(result.images_of("mask")[0])[..., 0]
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert 0.05 < (mask > 0).mean() < 0.7
    red, blue = (image[..., 0] - image[..., 2] for image in (before, after))
    assert (red > 100).sum() > 5000, "the circle was red"
    assert 0.8 < (blue < -100).sum() / (red > 100).sum() < 1.25, "and is blue"
