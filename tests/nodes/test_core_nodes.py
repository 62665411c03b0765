"""ComfyUI's own nodes for models and conditioning on those of DeepGen: each does what it should, and only that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from core_checkpoints import skip_block, write_variant
from core_graphs import (
    IMAGES,
    ROUNDING,
    SEEN,
    assert_unchanged,
    drawn,
    gap,
    in_two_parts,
    lay_images,
    text,
    two_images,
    with_defaults,
)
from golden import TINY
from PIL import Image

from deepgen_npu.checkpoint.folder import Checkpoint
from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, core, encoding, ksampler, loader
from dev.comfyui.probe import DIT
from dev.comfyui.server import ComfyServer
from nodes.names import DEMO


BLOCK = "1"
SKIP = {"double_layers": BLOCK, "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
PATCHES: dict[str, dict[str, Any]] = {
    "ModelSamplingSD3": {"shift": 6.0},
    "RescaleCFG": {"multiplier": 0.7},
    "CFGZeroStar": {},
    "APG": {"eta": 0.5, "norm_threshold": 1.0, "momentum": 0.0},
    "CFGNorm": {"strength": 1.0},
    "TCFG": {},
    "Mahiro": {},
    "RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 0.5},
    "Epsilon Scaling": {"scaling_factor": 1.02},
    "SkipLayerGuidanceDiT": {**SKIP, "scale": 3.0, "rescaling_scale": 0.0},
    "SkipLayerGuidanceDiTSimple": SKIP,
    "SkipLayerGuidanceSD3": {"layers": BLOCK, "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0},
}
"""Nodes that make a MODEL of a MODEL, with inputs that are to be seen."""
WITHOUT_EFFECT = {
    **dict.fromkeys(("PerturbedAttentionGuidance", "NAGuidance", "HyperTile", "TomePatchModel"), "attn1"),
    "ScaleROPE": "rope_options",
}
"""Nodes that patch attention as UNets have it, or positions as others have them: the place that the log names."""


@pytest.fixture
def client(comfy, comfy_client) -> Client:
    lay_images(comfy)
    return comfy_client


def known(client: Client, node: str) -> None:
    if not client.object_info(node):
        pytest.skip(f"ComfyUI {client.server.version} has no {node}")


def patched(node: str, **inputs: Any) -> Graph:
    return {"patch": core(node, model=["loader", 2], **inputs), "made": ksampler(model=["patch", 0])}


def of_patches(comfy: ComfyServer, before: int) -> str:
    """What the log says of patches without effect, after so many characters of it."""
    (line,) = [line for line in comfy.log_text()[before:].splitlines() if "no effect on DeepGen" in line]
    return line


class TestModelPatches:
    @pytest.mark.parametrize("node", PATCHES)
    def test_it_changes_its_own_model_alone(self, client, node):
        known(client, node)
        found = drawn(client, text() | patched(node, **PATCHES[node]))
        assert gap(found["made"], found["base"]) > SEEN
        assert_unchanged(client, found["base"])

    def test_guidance_by_a_skipped_block(self, comfy, client):
        """With cfg 0 the negative alone counts, in which the block is skipped: as if its gates were shut."""
        write_variant(comfy.models, "skipping", lambda tensors: skip_block(tensors, int(BLOCK)))
        graph = text(cfg=0.0) | patched("SkipLayerGuidanceDiTSimple", **SKIP)
        graph["made"]["inputs"]["cfg"] = 0.0
        graph |= {"skipping": loader("skipping"), "shut": ksampler(model=["skipping", 2], cfg=0.0)}
        found = drawn(client, graph)
        shutil.rmtree(comfy.models / "deepgen" / "skipping")
        assert gap(found["made"], found["shut"]) < ROUNDING
        assert gap(found["made"], found["base"]) > SEEN

    def test_a_block_that_is_not_there(self, comfy, client):
        """The defaults of these nodes are blocks of larger models: 7, 8 and 9; this one has four."""
        before = len(comfy.log_text())
        graph = text() | {"patch": with_defaults(client, "SkipLayerGuidanceDiTSimple", model=["loader", 2])}
        found = drawn(client, graph | {"made": ksampler(model=["patch", 0])})
        assert gap(found["made"], found["base"]) < ROUNDING
        assert "double_block 7, double_block 8, double_block 9" in of_patches(comfy, before)

    def test_compiled(self, client):
        """On a CPU the backend for graphs of a device runs what was traced as it is, without a compiler."""
        found = drawn(client, text() | patched("TorchCompileModel", backend="cudagraphs"))
        assert gap(found["made"], found["base"]) < ROUNDING
        assert_unchanged(client, found["base"])

    @pytest.mark.parametrize("node", WITHOUT_EFFECT)
    def test_what_has_no_effect_is_named_in_the_log(self, comfy, client, node):
        known(client, node)
        before = len(comfy.log_text())
        graph = text() | {"patch": with_defaults(client, node, model=["loader", 2])}
        found = drawn(client, graph | {"made": ksampler(model=["patch", 0])})
        assert gap(found["made"], found["base"]) < ROUNDING
        assert WITHOUT_EFFECT[node] in of_patches(comfy, before)


class TestDifferentialDiffusion:
    def test_a_soft_mask(self, client):
        """Of a mask it makes a hard one for each step, so that half a mask is drawn in half of the steps."""
        settings = {"latent_image": ["masked", 0], "steps": 6}
        graph = text(steps=6) | two_images()
        graph |= {
            "clean": core("VAEEncode", pixels=["a", 0], vae=["loader", 1]),
            "half": core("SolidMask", value=0.5, width=64, height=64),
            "full": core("SolidMask", value=1.0, width=64, height=64),
            "masked": core("SetLatentNoiseMask", samples=["clean", 0], mask=["half", 0]),
            "free": core("SetLatentNoiseMask", samples=["clean", 0], mask=["full", 0]),
            "patch": core("DifferentialDiffusion", model=["loader", 2], strength=1.0),
            "plain": ksampler(**settings),
            "soft": ksampler(model=["patch", 0], **settings),
            "unmasked": ksampler(latent_image=["clean", 0], steps=6),
            "all": ksampler(model=["patch", 0], **settings | {"latent_image": ["free", 0]}),
        }
        found = drawn(client, graph, "plain", "soft", "all", "unmasked", "clean")
        assert gap(found["soft"], found["plain"]) > SEEN and gap(found["soft"], found["unmasked"]) > SEEN
        assert gap(found["all"], found["unmasked"]) < ROUNDING
        assert gap(found["soft"], found["clean"]) > SEEN


@pytest.fixture(scope="module")
def referenced(comfy) -> Iterator[dict[str, np.ndarray]]:
    lay_images(comfy)
    graph = text() | two_images()
    for name in "ab":
        graph[f"latent {name}"] = core("VAEEncode", pixels=[name, 0], vae=["loader", 1])
        for output, kind in ((1, "positive"), (2, "negative")):
            inputs = {"conditioning": ["encode", output], "latent": [f"latent {name}", 0]}
            graph[f"{kind} {name}"] = core("ReferenceLatent", **inputs)
        graph[name * 2] = ksampler(positive=[f"positive {name}", 0], negative=[f"negative {name}", 0])
    graph["second"] = core("ReferenceLatent", conditioning=["positive a", 0], latent=["latent b", 0])
    graph["second negative"] = core("ReferenceLatent", conditioning=["negative a", 0], latent=["latent b", 0])
    graph["both"] = ksampler(positive=["second", 0], negative=["second negative", 0])
    with Client(comfy) as client:
        yield drawn(client, graph)


class TestReferenceLatent:
    """On the conditioning of a text, which then is that of an edit but for what the VLM would have seen."""

    @pytest.fixture
    def found(self, referenced) -> dict[str, np.ndarray]:
        return referenced

    @pytest.mark.parametrize(("name", "images"), [("base", ""), ("aa", "a"), ("bb", "b"), ("both", "ab")])
    def test_it_is_what_the_library_draws(self, comfy, found, pipe, name, images):
        words = {"prompt": ["a red circle"], "negative_prompt": "", "height": 64, "width": 64}
        conditioning = pipe.encode(**words)
        if images:
            opened = [Image.open(comfy.input / IMAGES["ab".index(one)]) for one in images]
            conditioning.reference_latents = pipe.encode(image=opened, **words).reference_latents
        latents = pipe.denoise(conditioning, pipe.prepare_latents(1, 64, 64, seed=42), 3, 4.0)
        assert gap(found[name], pipe.unscale_latents(latents).float().numpy()) < ROUNDING

    def test_each_is_another_image(self, found):
        names = ("base", "aa", "bb", "both")
        for index, one in enumerate(names):
            assert all(gap(found[one], found[other]) > SEEN for other in names[:index])


def combined(one: list, other: list) -> dict[str, Any]:
    return core("ConditioningCombine", conditioning_1=one, conditioning_2=other)


def halves() -> Graph:
    """Masks of the ``left`` and the ``right`` half of 128 x 64 pixels."""
    half = core("SolidMask", value=1.0, width=64, height=64)
    none = core("SolidMask", value=0.0, width=128, height=64)
    graph = {"half": half, "none": none}
    for name, x in (("left", 0), ("right", 64)):
        inputs = {"destination": ["none", 0], "source": ["half", 0], "x": x, "y": 0, "operation": "add"}
        graph[name] = core("MaskComposite", **inputs)
    return graph


LEFT, RIGHT = slice(None, 8), slice(8, None)
ONE, TWO = ["encode", 1], ["two", 1]


@pytest.fixture(scope="module")
def one_step(comfy) -> Iterator[dict[str, np.ndarray]]:
    """Each in one step, in which no place knows what another one has become."""
    whole = {"strength": 1.0, "set_cond_area": "default"}
    area = {"height": 64, "x": 0, "y": 0, "strength": 1.0}
    graph = text(steps=1) | halves()
    graph["encode"] = encoding(width=128)
    graph |= {"two": encoding(prompt="a big square")}
    made = {
        "combine": combined(ONE, TWO),
        "combine back": combined(TWO, ONE),
        "combine itself": combined(ONE, ONE),
        "area": combined(ONE, ["area two", 0]),
        "area of all": core("ConditioningSetArea", conditioning=ONE, width=128, **area),
        "masks": combined(["mask one", 0], ["mask two", 0]),
        "average": core(
            "ConditioningAverage", conditioning_to=ONE, conditioning_from=TWO, conditioning_to_strength=0.5
        ),
        "average back": core(
            "ConditioningAverage", conditioning_to=TWO, conditioning_from=ONE, conditioning_to_strength=0.5
        ),
        "average of one": core(
            "ConditioningAverage", conditioning_to=ONE, conditioning_from=TWO, conditioning_to_strength=1.0
        ),
        "zero": core("ConditioningZeroOut", conditioning=ONE),
        "zero two": core("ConditioningZeroOut", conditioning=TWO),
        "concat": core("ConditioningConcat", conditioning_to=ONE, conditioning_from=TWO),
    }
    graph |= {
        "area two": core("ConditioningSetArea", conditioning=TWO, width=64, **area),
        "mask one": core("ConditioningSetMask", conditioning=ONE, mask=["left", 0], **whole),
        "mask two": core("ConditioningSetMask", conditioning=TWO, mask=["right", 0], **whole),
    }
    graph |= made | {f"of {name}": ksampler(positive=[name, 0], steps=1) for name in made}
    graph["other"] = ksampler(positive=TWO, steps=1)
    graph |= {
        "area alone": ksampler(steps=1, cfg=1.0, positive=["area two", 0]),
        "negative alone": ksampler(steps=1, cfg=0.0),
        "negative beside more": ksampler(steps=1, cfg=0.0, positive=["concat", 0]),
    }
    with Client(comfy) as client:
        yield drawn(client, graph)


class TestConditioning:
    @pytest.fixture
    def found(self, one_step) -> dict[str, np.ndarray]:
        return one_step

    def test_combine(self, found):
        assert gap(found["of combine itself"], found["base"]) < ROUNDING
        assert gap(found["of combine"], found["of combine back"]) < ROUNDING
        assert gap(found["of combine"], (found["base"] + found["other"]) / 2) < ROUNDING
        assert gap(found["base"], found["other"]) > SEEN

    def test_area(self, found):
        assert gap(found["of area of all"], found["base"]) < ROUNDING
        assert gap(found["of area"][..., RIGHT], found["base"][..., RIGHT]) < ROUNDING
        assert gap(found["of area"][..., LEFT], found["base"][..., LEFT]) > SEEN

    def test_area_alone(self, found):
        """Outside of it nothing is asked for: zeros, in the space in which the model works."""
        shift = Checkpoint.open(TINY).configs["vae"]["shift_factor"]
        assert gap(found["area alone"][..., RIGHT], np.full((1, 16, 8, 8), shift)) < ROUNDING
        assert found["area alone"][..., LEFT].std() > 0.1

    def test_masks(self, found):
        assert gap(found["of masks"][..., LEFT], found["base"][..., LEFT]) < ROUNDING
        assert gap(found["of masks"][..., RIGHT], found["other"][..., RIGHT]) < ROUNDING
        assert gap(found["base"][..., RIGHT], found["other"][..., RIGHT]) > SEEN

    def test_average(self, found):
        assert gap(found["of average of one"], found["base"]) == 0
        assert gap(found["of average"], found["of average back"]) < ROUNDING
        assert min(gap(found["of average"], found[name]) for name in ("base", "other")) > SEEN

    def test_zero_out(self, found):
        """Nothing is left of either prompt; both are equally long."""
        assert gap(found["of zero"], found["of zero two"]) == 0
        assert gap(found["of zero"], found["base"]) > SEEN

    def test_conditionings_of_unequal_length(self, found):
        """Neither is repeated up to a common length, which would change it."""
        assert gap(found["negative beside more"], found["negative alone"]) < ROUNDING
        assert gap(found["of concat"], found["base"]) > SEEN

    def test_timestep_range(self, client):
        """Three steps with one prompt and three with the other."""
        graph = text(steps=6) | {
            "two": encoding(prompt="a big square"),
            "early": core("ConditioningSetTimestepRange", conditioning=ONE, start=0.0, end=0.5),
            "late": core("ConditioningSetTimestepRange", conditioning=TWO, start=0.5, end=1.0),
            "in turn": combined(["early", 0], ["late", 0]),
            "made": ksampler(steps=6, positive=["in turn", 0]),
            **in_two_parts(second={"positive": TWO}),
        }
        found = drawn(client, graph)
        assert gap(found["made"], found["second"]) < ROUNDING
        assert gap(found["made"], found["base"]) > SEEN


class TestStepCaches:
    """With a trained model, whose steps are alike: those of a random one are not."""

    @pytest.mark.parametrize("node", ["LazyCache", "EasyCache"])
    def test_some_steps_are_not_computed(self, probed, probed_client, probe, node):
        if node == "EasyCache" and probed.checkout.version_tuple < (0, 8):
            pytest.skip("EasyCache of ComfyUI 0.3.64 is wrong where both conditionings are computed at once")
        words = {"prompt": "a red circle on the left on a white background", "width": 512, "height": 512}
        steps = {"steps": 20, "scheduler": "simple"}
        plain = {"loader": loader(DEMO, "float32"), "encode": encoding(**words), "base": ksampler(**steps)}
        cache = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        cached = patched(node, **cache) | {"made": ksampler(model=["patch", 0], **steps)}
        probe.new_calls()
        base = drawn(probed_client, plain | {"base": ksampler(**steps, seed=7)})["base"]
        (computed,) = probe.new_calls(DIT)
        cached["made"]["inputs"]["seed"] = 7
        made = drawn(probed_client, {**plain, **cached}, "made")["made"]
        (fewer,) = probe.new_calls(DIT)
        assert computed == 20 and 5 < fewer < 15
        assert 0 < gap(made, base) < 0.4 and np.abs(base).max() > 1
