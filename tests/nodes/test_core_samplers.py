"""ComfyUI's own samplers draw what DeepGen's nodes draw; progress, preview and cancel are those of its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from core_graphs import (
    ROUNDING,
    SEEN,
    advanced,
    assert_unchanged,
    drawn,
    gap,
    in_two_parts,
    keeping,
    latents_of,
    lay_images,
    not_cached,
    text,
    two_images,
)
from progress_checks import assert_cancelled_within_a_step
from safetensors.torch import save_file

from dev.comfyui.client import Client
from dev.comfyui.graphs import (
    Graph,
    array,
    core,
    decoding,
    edit,
    encoding,
    generation,
    ksampler,
    loader,
    sampling,
    save,
)
from dev.comfyui.result import RunResult
from nodes.names import DEMO


@pytest.fixture
def client(comfy, comfy_client) -> Client:
    lay_images(comfy)
    return comfy_client


def clean(mask: bool = False) -> Graph:
    """``clean``, an image as a latent, and ``masked``, of which only the left half may change."""
    graph = {**two_images(), "clean": core("VAEEncode", pixels=["a", 0], vae=["loader", 1])}
    if mask:
        graph |= {
            "left": core("SolidMask", value=1.0, width=32, height=64),
            "none": core("SolidMask", value=0.0, width=64, height=64),
            "mask": core("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0, operation="add"),
            "masked": core("SetLatentNoiseMask", samples=["clean", 0], mask=["mask", 0]),
        }
    return graph


def empty(batch_size: int = 1, width: int = 64, height: int = 64) -> dict[str, Any]:
    return core("EmptySD3LatentImage", width=width, height=height, batch_size=batch_size)


def pair(more: Graph | None = None, latent: str | None = None, batch_size: int = 1, **settings: Any) -> Graph:
    """``ours`` and ``base``, DeepGen Sampler and KSampler with the same settings."""
    graph: Graph = {"loader": loader(), "encode": encoding(), **(more or {})}
    start = {"latent_image": [latent, 0]} if latent else {}
    graph["ours"] = sampling("encode", **settings, **({} if latent else {"batch_size": batch_size}), **start)
    if batch_size > 1:
        graph["empty"] = empty(batch_size)
        start = {"latent_image": ["empty", 0]}
    graph["base"] = ksampler(**settings, **start)
    return graph


def editing(**images: Any) -> Graph:
    return {**two_images(), "encode": encoding(prompt="make it blue", negative_prompt="blurry", **images)}


BATCH = {**two_images(), "both": core("ImageBatch", image1=["a", 0], image2=["b", 0])}
CASES: dict[str, Graph] = {
    "generation": pair(steps=6),
    "bfloat16": pair({"loader": loader(dtype="bfloat16")}),
    "one reference": pair(editing(image=["a", 0])),
    "two references": pair(editing(image=["a", 0], image_2=["b", 0])),
    "an edit of two images": pair({**BATCH, **editing(image=["both", 0], image_2=["a", 0])}),
    "a batch of three": pair(batch_size=3, seed=7),
    "no guidance": pair(cfg=1.0),
    "denoise": pair(clean(), latent="clean", denoise=0.5, steps=4),
    "mask and denoise": pair(clean(mask=True), latent="masked", denoise=0.7, steps=4),
}


class TestTheSameAsOurSampler:
    @pytest.mark.parametrize("case", CASES)
    def test_latents(self, client, case):
        graph = CASES[case]
        found = drawn(client, graph)
        # Of a batch ComfyUI computes the rows at once and DeepGen Sampler one after the other.
        assert gap(found["base"], found["ours"]) <= (ROUNDING if case == "an edit of two images" else 0)
        assert len(found["base"]) == {"a batch of three": 3, "an edit of two images": 2}.get(case, 1)
        assert found["base"].std() > 0.1
        if len(found["base"]) > 1:
            assert gap(found["base"][:1], found["base"][1:2]) > SEEN

    def test_a_mask_keeps_what_is_outside(self, client):
        """Both samplers kept it: the other half is drawn anew."""
        graph = CASES["mask and denoise"] | {"whole": ksampler(latent_image=["clean", 0], denoise=0.7, steps=4)}
        found = drawn(client, graph, "base", "whole", "clean")
        kept, changed = slice(4, None), slice(None, 4)
        assert gap(found["base"][..., kept], found["clean"][..., kept]) < ROUNDING
        assert gap(found["base"][..., changed], found["clean"][..., changed]) > SEEN
        assert gap(found["whole"][..., kept], found["clean"][..., kept]) > SEEN

    @pytest.mark.parametrize("kind", ["generation", "edit"])
    def test_images_of_the_simple_nodes(self, client, kind):
        """Generate and Edit, in which all of it is one node."""
        graph = CASES["generation" if kind == "generation" else "two references"] | two_images()
        words = {"prompt": "make it blue", "negative_prompt": "blurry"}
        simple = generation(steps=6) if kind == "generation" else edit("a", image_2=["b", 0], **words)
        graph |= {"simple": simple, "theirs": save("simple"), "decoded": decoding("base"), "ours": save("decoded")}
        result = client.run(graph)
        assert result.ok, result.error_text
        (ours,), (theirs,) = result.images_of("ours"), result.images_of("theirs")
        assert np.abs(array(ours) - array(theirs)).max() <= 1 and array(ours).std() > 1

    def test_the_demo(self, client):
        """A model with another latent format than SD3's, drawn at an eighth of the size that is shown."""
        words = {"prompt": "a red circle on the left on a white background", "width": 512, "height": 512}
        graph = {
            "loader": loader(DEMO, "auto"),
            "encode": encoding(**words),
            "base": ksampler(steps=8),
            "decoded": decoding("base"),
            "ours": save("decoded"),
            "simple": generation(**words, steps=8),
            "theirs": save("simple"),
        }
        result = client.run(graph)
        assert result.ok, result.error_text
        (ours,), (theirs,) = result.images_of("ours"), result.images_of("theirs")
        assert ours.size == theirs.size == (512, 512)
        assert np.abs(array(ours) - array(theirs)).max() <= 1
        red, green, blue = array(ours)[192:320, 96:160].mean((0, 1))
        assert red > green + 60 and red > blue + 60, "a red circle on the left"


def custom(guider: str = "guider", sigmas: str = "sigmas") -> dict[str, Any]:
    names = {"noise": ["noise", 0], "sampler": ["euler", 0], "latent_image": ["encode", 3]}
    return core("SamplerCustomAdvanced", guider=[guider, 0], sigmas=[sigmas, 0], **names)


def shifted(shift: float, name: str) -> Graph:
    """A run whose MODEL went through ModelSamplingSD3, by SamplerCustomAdvanced and by KSampler."""
    conditioning = {"positive": ["encode", 1], "negative": ["encode", 2]}
    model = f"model {name}"
    return {
        model: core("ModelSamplingSD3", model=["loader", 2], shift=shift),
        f"sigmas {name}": core("BasicScheduler", model=[model, 0], scheduler="normal", steps=6, denoise=1.0),
        f"guider {name}": core("CFGGuider", model=[model, 0], cfg=4.0, **conditioning),
        f"custom {name}": custom(f"guider {name}", f"sigmas {name}"),
        f"ksampler {name}": ksampler(model=[model, 0], steps=6),
    }


@pytest.fixture(scope="module")
def six_steps(comfy) -> Iterator[dict[str, np.ndarray]]:
    """One prompt in six steps, by every way that should come to the same, and by some that should not."""
    conditioning = {"positive": ["encode", 1], "negative": ["encode", 2]}
    dual = {"cond1": ["encode", 1], "cond2": ["other", 1], "negative": ["encode", 2]}
    graph = {
        **text(steps=6),
        "other": encoding(prompt="a blue square"),
        "whole": advanced(steps=6),
        **in_two_parts(),
        "noise": core("RandomNoise", noise_seed=42),
        "euler": core("KSamplerSelect", sampler_name="euler"),
        "sigmas": core("BasicScheduler", model=["loader", 2], scheduler="normal", steps=6, denoise=1.0),
        "guider": core("CFGGuider", model=["loader", 2], cfg=4.0, **conditioning),
        "custom": custom(),
        "dual": core(
            "DualCFGGuider", model=["loader", 2], cfg_conds=3.0, cfg_cond2_negative=4.0, style="regular", **dual
        ),
        "two prompts": custom("dual"),
        "basic": core("BasicGuider", model=["loader", 2], conditioning=["encode", 1]),
        "no negative": custom("basic"),
        "unguided": ksampler(steps=6, cfg=1.0),
        **shifted(3.0, "3"),
        **shifted(6.0, "6"),
    }
    twice = {"cond2": ["encode", 1], "cfg_conds": 1.0}
    graph["same"] = core("DualCFGGuider", **{**graph["dual"]["inputs"], **twice})
    graph["one prompt"] = custom("same")
    with Client(comfy) as client:
        yield drawn(client, graph)


class TestOtherSamplingNodes:
    @pytest.fixture
    def found(self, six_steps) -> dict[str, np.ndarray]:
        return six_steps

    def test_in_two_parts(self, found):
        assert gap(found["whole"], found["base"]) == 0
        assert gap(found["second"], found["whole"]) < ROUNDING
        assert gap(found["first"], found["whole"]) > SEEN, "noise is left in it"

    def test_from_single_parts(self, found):
        assert gap(found["custom"], found["base"]) == 0
        assert gap(found["no negative"], found["unguided"]) < ROUNDING
        assert gap(found["unguided"], found["base"]) > SEEN

    def test_two_guidances(self, found):
        assert gap(found["one prompt"], found["base"]) < ROUNDING
        assert gap(found["two prompts"], found["base"]) > SEEN

    def test_shift(self, found):
        """3 is the model's own."""
        assert gap(found["custom 3"], found["base"]) == 0 and gap(found["ksampler 3"], found["base"]) == 0
        assert gap(found["custom 6"], found["ksampler 6"]) == 0
        assert gap(found["custom 6"], found["base"]) > SEEN


SCHEDULERS = ("simple", "sgm_uniform", "ddim_uniform", "beta", "linear_quadratic", "kl_optimal", "karras")
SLOW = {"dpm_adaptive"}
"""It evaluates the model some fifty times, whatever the number of steps."""


class TestEverySampler:
    def test_samplers(self, client):
        """All that this ComfyUI has, with and without what is kept of one step for the next.

        A node between sampler and model may change what the model is given, so that nothing can be kept: here one
        that does nothing, since it reuses a step only if it was exactly the last one.
        """
        names = {*client.object_info("KSampler")["KSampler"]["input"]["required"]["sampler_name"][0]} - SLOW
        settings = {"steps": 4, "scheduler": "simple"}
        cache = {"reuse_threshold": 0.0, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        graph = text(**settings) | {"between": core("EasyCache", model=["loader", 2], **cache)}
        for name in names:
            graph[name] = ksampler(sampler_name=name, **settings)
            graph[f"{name} alone"] = ksampler(sampler_name=name, model=["between", 0], **settings)
        found = drawn(client, graph)
        base = found["base"]
        assert len(names) > 35
        apart = {name: gap(found[name], found[f"{name} alone"]) for name in names}
        assert {name: value for name, value in apart.items() if value > ROUNDING} == {}
        assert {name for name in names if gap(found[name], base) < ROUNDING} == {"euler", "ddim"}
        assert {name for name in names if not 0.1 < found[name].std() < 10 * base.std()} == set()

    def test_schedulers(self, client):
        graph = text() | {name: ksampler(scheduler=name) for name in SCHEDULERS}
        found = drawn(client, graph)
        assert all(gap(found[name], found["base"]) > SEEN for name in SCHEDULERS)


class TestSizes:
    def test_sides_that_are_no_multiple_of_the_patch(self, comfy, client):
        """One step of a latent of 9 x 7 cells is that of one of 10 x 8 that repeats its last row and column."""
        cells = torch.randn(1, 16, 7, 9, generator=torch.Generator().manual_seed(1))
        padded = torch.nn.functional.pad(cells, (0, 1, 0, 1), mode="replicate")
        for name, samples in (("odd", cells), ("even", padded)):
            tensors = {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}
            save_file(tensors, str(comfy.input / f"{name}.latent"))
        step = {"steps": 6, "add_noise": "disable", "start_at_step": 3, "end_at_step": 4}
        step["return_with_leftover_noise"] = "enable"
        graph = text() | {name: core("LoadLatent", latent=f"{name}.latent") for name in ("odd", "even")}
        graph |= {f"{name} step": advanced(latent_image=[name, 0], **step) for name in ("odd", "even")}
        graph |= {"empty": empty(width=72, height=56), "made": ksampler(latent_image=["empty", 0])}
        graph |= {"decoded": decoding("made"), "saved": save("decoded")}
        nodes = ("odd", "odd step", "even step", "made")
        result = client.run(keeping(graph, *nodes))
        found = latents_of(result)
        assert gap(found["odd step"], found["even step"][..., :7, :9]) < ROUNDING
        assert gap(found["odd step"], found["odd"]) > SEEN
        assert found["made"].shape == (1, 16, 7, 9) and found["made"].std() > 0.1
        assert [image.size for image in result.images_of("saved")] == [(72, 56)]

    def test_empty_latents_of_other_models(self, client):
        """ComfyUI makes of an empty latent what the model takes."""
        graph = text() | {"four channels": core("EmptyLatentImage", width=64, height=64, batch_size=1)}
        graph |= {"made": ksampler(latent_image=["four channels", 0])}
        found = drawn(client, graph, "base", "made")
        assert gap(found["made"], found["base"]) == 0

    def test_empty_latents_by_pixels_as_shown(self, comfy, client):
        """The demo is shown at eight times the size at which it draws. Newer versions of ComfyUI ask the model."""
        graph = text() | {"loader": loader(DEMO), "encode": encoding(width=512, height=512)}
        graph |= {"empty": empty(width=512, height=512), "made": ksampler(latent_image=["empty", 0])}
        if comfy.checkout.version_tuple >= (0, 33):
            found = drawn(client, graph)
            assert gap(found["made"], found["base"]) == 0 and found["made"].shape == (1, 16, 8, 8)
        else:
            error = client.run(keeping(graph, "made")).error_text
            assert "latent_image must have sides of at most 16 latent cells with this model, got 64 x 64. " in error
            assert "The latent of DeepGen Encode Prompt has the right size." in error

    def test_conditioning_of_another_model(self, client):
        graph = text() | {"other": loader(DEMO), "made": ksampler(model=["other", 2])}
        error = client.run(keeping(graph, "made")).error_text
        assert "conditioning: embeds must have the shape [batch, tokens, 128], got [1, " in error
        assert "Connect positive and negative of DeepGen Encode Prompt" in error


class TestProgress:
    @pytest.fixture
    def result(self, client) -> RunResult:
        return client.run(keeping(text(steps=6, cfg=not_cached()), "base"))

    def test_bar(self, result):
        assert result.ok, result.error_text
        steps = [(one.value, one.max) for one in result.progress if one.node == "base"]
        assert steps[-6:] == [(step, 6) for step in range(1, 7)]

    def test_preview(self, result):
        previews = [preview.image for preview in result.previews if preview.node == "base"]
        assert len(previews) >= 1
        assert all(array(preview).std() > 1 for preview in previews)

    def test_another_seed_encodes_nothing(self, client):
        first = drawn(client, text(seed=1))
        result = client.run(keeping(text(seed=2), "base"))
        assert {"loader", "encode"} <= set(result.cached) and set(result.executed) == {"base", "base_kept"}
        assert gap(latents_of(result)["base"], first["base"]) > SEEN


def test_cancel(client):
    """Within a step; the next run is unharmed."""
    before = drawn(client, text())["base"]
    slow = {"loader": loader("DeepGen-1.0-diffusers"), "empty": empty(width=768, height=768)}
    slow |= {"encode": encoding(), "made": ksampler(latent_image=["empty", 0], steps=1000)}
    assert_cancelled_within_a_step(client, keeping(slow, "made"), "made")
    assert_unchanged(client, before)
