"""The modular nodes together with ComfyUI's own: latents, the VAE, masks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from golden import TINY
from PIL import Image

from deepgen_npu.checkpoint.folder import Checkpoint
from dev.comfyui.graphs import (
    array,
    core,
    decoding,
    edit,
    encoding,
    generation,
    load_image,
    loader,
    modular,
    sampling,
    save,
)
from nodes.names import DEMO


def images(comfy_client, graph, node: str = "saved") -> list[np.ndarray]:
    result = comfy_client.run(graph)
    assert result.ok, result.error_text
    return [array(image) for image in result.images_of(node)]


class TestSameAsTheSimpleNodes:
    """To the bit: a node that does all at once is built from the same pieces."""

    @pytest.mark.parametrize(
        ("model", "dtype", "side"),
        [("somebody/reference", "float32", 64), ("somebody/reference", "bfloat16", 64), (DEMO, "auto", 512)],
    )
    def test_generation(self, comfy_client, model, dtype, side):
        graph = modular(width=side, height=side)
        graph["loader"] = loader(model, dtype)
        graph["sample"]["inputs"]["batch_size"] = 2
        graph["simple"] = generation(width=side, height=side, batch_size=2)
        graph["saved_simple"] = save("simple")
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        ours, simple = result.images_of("saved"), result.images_of("saved_simple")
        assert len(ours) == len(simple) == 2 and ours[0].size == (side, side)
        assert all(np.array_equal(array(one), array(other)) for one, other in zip(ours, simple, strict=True))

    def test_editing_a_batch_with_a_reference(self, comfy_client):
        extra = {"prompt": "make it blue", "negative_prompt": "blurry", "image_2": ["other", 0]}
        graph = modular(image=["batch", 0], **extra)
        graph["batch"] = generation(batch_size=2, seed=3)
        graph["other"] = generation(seed=4)
        graph["simple"] = edit("batch", **extra)
        graph["saved_simple"] = save("simple")
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        ours, simple = result.images_of("saved"), result.images_of("saved_simple")
        assert len(ours) == len(simple) == 2
        assert all(np.array_equal(array(one), array(other)) for one, other in zip(ours, simple, strict=True))


class TestLatents:
    def test_what_goes_through_the_vae_comes_back(self, comfy_client):
        """VAE Encode and VAE Decode, whole and in tiles, with the demo's VAE, which is a trained one."""
        source = {"loader": loader(DEMO), "make": generation(width=512, height=512, steps=20), "made": save("make")}
        encode = core("VAEEncode", pixels=["make", 0], vae=["loader", 1])
        tiled = core("VAEEncodeTiled", pixels=["make", 0], vae=["loader", 1], tile_size=512, overlap=64)
        tiled["inputs"] |= {"temporal_size": 64, "temporal_overlap": 8}
        untile = core("VAEDecodeTiled", samples=["tiled", 0], vae=["loader", 1], tile_size=512, overlap=64)
        untile["inputs"] |= {"temporal_size": 64, "temporal_overlap": 8}
        graph = source | {"encode": encode, "decode": decoding("encode"), "saved": save("decode")}
        graph |= {"tiled": tiled, "untile": untile, "saved_tiled": save("untile")}
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        made, whole, tiles = (array(result.images_of(node)[0]) for node in ("made", "saved", "saved_tiled"))
        assert made.shape == whole.shape == tiles.shape == (512, 512, 3)
        assert np.abs(whole - made).mean() < 8
        assert np.abs(tiles - made).mean() < 8

    def test_less_denoising_stays_nearer_to_the_image(self, comfy_client):
        source = {
            "loader": loader(DEMO),
            "make": generation(width=512, height=512, steps=20, prompt="a red circle on a white background"),
            "made": save("make"),
            "clean": core("VAEEncode", pixels=["make", 0], vae=["loader", 1]),
            "encode": encoding(width=512, height=512, prompt="a blue square on a black background"),
        }
        for name, denoise in (("little", 0.3), ("much", 0.9)):
            source[name] = sampling("encode", steps=8, seed=5, denoise=denoise, latent_image=["clean", 0])
            source[f"{name}_decoded"] = decoding(name)
            source[f"{name}_saved"] = save(f"{name}_decoded")
        result = comfy_client.run(source)
        assert result.ok, result.error_text
        made, little, much = (array(result.images_of(n)[0]) for n in ("made", "little_saved", "much_saved"))
        assert 0 < np.abs(little - made).mean() * 2 < np.abs(much - made).mean()
        steps = [p.value for p in result.progress if p.node == "little" and p.max == 8]
        assert steps == list(range(1, 9)), "all the steps that were asked for"

    def test_a_mask_keeps_what_is_outside(self, comfy_client):
        graph = {
            "loader": loader(DEMO),
            "make": generation(width=512, height=512, steps=20, prompt="a red circle on a white background"),
            "clean": core("VAEEncode", pixels=["make", 0], vae=["loader", 1]),
            "before_decoded": decoding("clean"),
            "before": save("before_decoded"),
            "left": core("SolidMask", value=1.0, width=256, height=512),
            "none": core("SolidMask", value=0.0, width=512, height=512),
            "mask": core("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add"),
            "masked": core("SetLatentNoiseMask", samples=["clean", 0], mask=["mask", 0]),
            "encode": encoding(width=512, height=512, prompt="a black background"),
            "sample": sampling("encode", steps=10, latent_image=["masked", 0]),
            "decode": decoding("sample"),
            "saved": save("decode"),
        }
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        before, after = (array(result.images_of(node)[0]) for node in ("before", "saved"))
        changed = np.abs(after - before).mean(axis=(0, 2))
        # The VAE's convolutions carry a little of the change over the edge.
        assert changed[:192].mean() > 10 * max(changed[384:].mean(), 0.1)

    def test_an_empty_latent_sets_size_and_batch(self, comfy_client):
        graph = modular(sampler=sampling("encode", latent_image=["empty", 0], batch_size=5))
        graph["empty"] = core("EmptySD3LatentImage", width=96, height=64, batch_size=2)
        graph["simple"] = generation(width=96, height=64, batch_size=2)
        graph["saved_simple"] = save("simple")
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        ours, simple = result.images_of("saved"), result.images_of("saved_simple")
        assert [image.size for image in ours] == [(96, 64)] * 2
        assert all(np.array_equal(array(one), array(other)) for one, other in zip(ours, simple, strict=True))

    def test_one_of_a_batch_can_be_made_again(self, comfy_client):
        """LatentFromBatch stores which noise a latent had."""
        graph = modular(sampler=sampling("encode", latent_image=["empty", 0]))
        graph["empty"] = core("EmptySD3LatentImage", width=64, height=64, batch_size=3)
        third = images(comfy_client, graph)[2]
        graph["third"] = core("LatentFromBatch", samples=["empty", 0], batch_index=2, length=1)
        graph["sample"] = sampling("encode", latent_image=["third", 0])
        (alone,) = images(comfy_client, graph)
        assert np.abs(alone - third).max() <= 1


def test_the_vae_alone_reads_nothing_else(comfy, comfy_client):
    comfy.free()
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).save(comfy.input / "small.png")
    graph = {
        "loader": loader(),
        "a": load_image("small.png"),
        "encode": core("VAEEncode", pixels=["a", 0], vae=["loader", 1]),
        "decode": decoding("encode"),
        "saved": save("decode"),
    }
    log = len(comfy.log_text())
    assert images(comfy_client, graph)[0].shape == (64, 64, 3)
    loaded = re.findall(r"Requested to load (\w+)", comfy.log_text()[log:])
    assert loaded == ["DeepGenVAE"]
    # The bar over the bytes belongs to the first node that needs the text encoder.
    graph |= {"make": generation(seed=11), "saved": save("make")}
    result = comfy_client.run(graph)
    assert result.ok, result.error_text
    missing = Checkpoint.open(TINY).nbytes("vlm", "connector")
    assert (missing, missing) in {(p.value, p.max) for p in result.progress if p.node == "make"}


SHAPE = "latent_image must have the shape [batch, 16, height, width], got [1, 4, 8, 8]. Make it with VAE Encode and"


class TestRefusals:
    def refused(self, comfy_client, graph) -> str:
        result = comfy_client.run(graph)
        assert not result.ok
        return result.error_text

    def test_a_latent_of_another_model(self, comfy_client):
        graph = modular(sampler=sampling("encode", latent_image=["empty", 0]))
        graph["empty"] = core("EmptyLatentImage", width=64, height=64, batch_size=1)
        assert SHAPE in self.refused(comfy_client, graph)

    def test_less_denoising_of_nothing(self, comfy_client):
        graph = modular(sampler=sampling("encode", denoise=0.5))
        assert "denoise < 1 needs a latent_image: connect one, " in self.refused(comfy_client, graph)

    def test_a_latent_of_another_size_than_the_references(self, comfy_client):
        graph = modular(sampler=sampling("encode", latent_image=["empty", 0]), image=["make", 0])
        graph |= {"make": generation(), "empty": core("EmptySD3LatentImage", width=96, height=64, batch_size=1)}
        error = self.refused(comfy_client, graph)
        assert "latent_image is 96 x 64 but conditioning is for 64 x 64: use the same size for both." in error

    def test_more_latents_than_images(self, comfy_client):
        graph = modular(sampler=sampling("encode", latent_image=["empty", 0]), image=["make", 0])
        graph |= {"make": generation(batch_size=2)}
        graph["empty"] = core("EmptySD3LatentImage", width=64, height=64, batch_size=3)
        error = self.refused(comfy_client, graph)
        assert "latent_image has a batch of 3 but conditioning has 2 images: use 1 or 2 latents." in error

    def test_a_conditioning_of_another_model(self, comfy_client):
        graph = modular(sampler=sampling("encode", pipeline=["other", 0])) | {"other": loader(DEMO)}
        error = self.refused(comfy_client, graph)
        assert "conditioning was encoded by a different model (embedding width " in error
        assert "Connect the same DeepGen Loader to DeepGen Encode Prompt and DeepGen Sampler." in error

    def test_a_second_image_without_a_first(self, comfy_client):
        graph = modular(image_2=["make", 0]) | {"make": generation()}
        assert "image_2 needs an image: connect the first one to image." in self.refused(comfy_client, graph)

    def test_sizes(self, comfy_client):
        errors = comfy_client.validate(modular(width=100))
        assert "width must be a multiple of 16 from 16 to 6144, got 100 (nearest: 96, 112)." in str(errors)
        graph = modular(width=48, image=["make", 0]) | {"make": generation()}
        error = self.refused(comfy_client, graph)
        assert "width must be a multiple of 32 from 32 to 384, got 48 (nearest: 32, 64)." in error


def test_an_edit_can_come_back_at_the_size_of_its_image(comfy, comfy_client):
    Image.effect_mandelbrot((150, 101), (-2, -1.5, 1, 1.5), 60).save(comfy.input / "odd.png")
    graph = {
        "loader": loader("DeepGen-1.0-diffusers"),
        "a": load_image("odd.png"),
        "edit": edit("a", size_mode="size of image", steps=1),
        "saved": save("edit"),
    }
    (edited,) = images(comfy_client, graph)
    assert edited.shape == (101, 150, 3)
