"""LoRAs, hooks and merges of ComfyUI's own nodes on DeepGen's MODEL, against checkpoints with those weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from core_checkpoints import (
    FILE,
    LORA_FORMS,
    RANK,
    become_a_mixture,
    become_the_other,
    merge_lora,
    write_loras,
    write_variant,
)
from core_graphs import (
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
from tensors import load_file

from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, core, ksampler, loader


VARIANTS = {"with-lora": merge_lora, "other": become_the_other, "mixed": become_a_mixture}


@pytest.fixture(scope="module")
def variants(comfy) -> Iterator[None]:
    for name, change in VARIANTS.items():
        write_variant(comfy.models, name, change)
    write_loras(comfy.models)
    yield
    for name in VARIANTS:
        shutil.rmtree(comfy.models / "deepgen" / name)
    for form in LORA_FORMS:
        (comfy.models / "loras" / f"{form}.safetensors").unlink()


@pytest.fixture
def client(variants, comfy, comfy_client) -> Client:
    lay_images(comfy)
    return comfy_client


def lora(form: str, model: str = "", strength: float = 1.0) -> dict:
    """A LoRA on the loader's MODEL, or on that of another node."""
    link = [model, 0] if model else ["loader", 2]
    return core("LoraLoaderModelOnly", model=link, lora_name=f"{form}.safetensors", strength_model=strength)


def from_variant(name: str) -> Graph:
    """A run with the DiT of a variant; the text side is the same in all."""
    return {f"{name} loader": loader(name), f"{name} run": ksampler(model=[f"{name} loader", 2], steps=6)}


@pytest.mark.parametrize("form", LORA_FORMS)
def test_a_lora_is_the_merged_checkpoint(client, form):
    graph = text(steps=6) | {
        "lora": lora(form),
        "made": ksampler(model=["lora", 0], steps=6),
        **from_variant("with-lora"),
    }
    found = drawn(client, graph)
    assert gap(found["made"], found["with-lora run"]) < ROUNDING
    assert gap(found["made"], found["base"]) > 10 * SEEN
    assert_unchanged(client, found["base"], steps=6)


def test_loras_add_up_and_cancel_out(client):
    half, rest = lora("kohya", strength=0.5), lora("diffusers", "half", strength=0.5)
    graph = text(steps=6) | {"half": half, "both": rest, "none": lora("bare", "both", strength=-1.0)}
    graph |= {name: ksampler(model=[model, 0], steps=6) for name, model in (("made", "both"), ("nothing", "none"))}
    found = drawn(client, graph | from_variant("with-lora"))
    assert gap(found["made"], found["with-lora run"]) < ROUNDING
    assert gap(found["nothing"], found["base"]) < ROUNDING


class TestHooks:
    """A LoRA on a part of the conditioning, or of the steps."""

    HOOK = core("CreateHookLoraModelOnly", lora_name="diffusers.safetensors", strength_model=1.0)

    def test_on_both_conditionings_it_is_a_lora(self, client):
        """CreateHookLora is for CLIP as well, of which DeepGen has none."""
        hook = core("CreateHookLora", lora_name="kohya.safetensors", strength_model=1.0, strength_clip=1.0)
        whole = {"strength": 1.0, "set_cond_area": "default"}
        pair = {"positive_NEW": ["encode", 1], "negative_NEW": ["encode", 2], "hooks": ["hook", 0], **whole}
        single = {"cond_NEW": ["encode", 1], "hooks": ["model only", 0], **whole}
        graph = text(steps=6) | {
            "hook": hook,
            "model only": self.HOOK,
            "pair": core("PairConditioningSetProperties", **pair),
            "single": core("ConditioningSetProperties", **single),
            "both": ksampler(positive=["pair", 0], negative=["pair", 1], steps=6),
            "one": ksampler(positive=["single", 0], steps=6),
            "one, unguided": ksampler(positive=["single", 0], steps=6, cfg=1.0),
            "lora": lora("bare"),
            "whole": ksampler(model=["lora", 0], steps=6),
            "whole, unguided": ksampler(model=["lora", 0], steps=6, cfg=1.0),
        }
        found = drawn(client, graph)
        assert gap(found["both"], found["whole"]) < ROUNDING
        assert gap(found["one, unguided"], found["whole, unguided"]) < ROUNDING
        assert gap(found["one"], found["whole"]) > SEEN and gap(found["one"], found["base"]) > SEEN
        assert_unchanged(client, found["base"], steps=6)

    def test_for_half_of_the_steps(self, client):
        """The weights change within one sampling: three steps with the LoRA and three without."""
        late = core("CreateHookKeyframe", strength_mult=0.0, start_percent=0.5, prev_hook_kf=["early", 0])
        hooked = {"hooks": ["timed", 0], "strength": 1.0, "set_cond_area": "default"}
        pair = {"positive_NEW": ["encode", 1], "negative_NEW": ["encode", 2], **hooked}
        graph = text(steps=6) | {
            "hook": self.HOOK,
            "early": core("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0),
            "late": late,
            "timed": core("SetHookKeyframes", hooks=["hook", 0], hook_kf=["late", 0]),
            "pair": core("PairConditioningSetProperties", **pair),
            "made": ksampler(positive=["pair", 0], negative=["pair", 1], steps=6),
            "lora": lora("bare"),
            **in_two_parts(first={"model": ["lora", 0]}),
            "whole": ksampler(model=["lora", 0], steps=6),
        }
        found = drawn(client, graph)
        assert gap(found["made"], found["second"]) < ROUNDING
        assert gap(found["made"], found["whole"]) > SEEN and gap(found["made"], found["base"]) > SEEN
        assert_unchanged(client, found["base"], steps=6)


class TestMerges:
    def test_of_two_checkpoints(self, client):
        theirs = {"model1": ["loader", 2], "model2": ["other loader", 2]}
        difference = {"model1": ["other loader", 2], "model2": ["loader", 2], "multiplier": 1.0}
        graph = text(steps=6) | from_variant("other") | from_variant("mixed")
        graph |= {
            "merged": core("ModelMergeSimple", **theirs, ratio=0.25),
            "made": ksampler(model=["merged", 0], steps=6),
            "itself": core("ModelMergeSimple", model1=["loader", 2], model2=["loader", 2], ratio=0.25),
            "same": ksampler(model=["itself", 0], steps=6),
            "difference": core("ModelMergeSubtract", **difference),
            "sum": core("ModelMergeAdd", model1=["loader", 2], model2=["difference", 0]),
            "added": ksampler(model=["sum", 0], steps=6),
        }
        found = drawn(client, graph)
        assert gap(found["made"], found["mixed run"]) < ROUNDING
        assert gap(found["same"], found["base"]) < ROUNDING
        assert gap(found["added"], found["other run"]) < ROUNDING
        different = (found["base"], found["other run"], found["mixed run"])
        assert all(gap(one, other) > SEEN for one, other in zip(different, different[1:] + different[:1], strict=True))
        assert_unchanged(client, found["base"], steps=6)


def test_a_lora_that_comfyui_trains(client):
    """In four steps it learns nothing that could be judged: it is trained, and changes what is drawn."""
    image = core("VAEEncode", pixels=["a", 0], vae=["loader", 1])
    linked = {"model": ["loader", 2], "latents": ["clean", 0], "positive": ["encode", 1]}
    train = with_defaults(client, "TrainLoraNode", **linked, steps=4, rank=RANK, learning_rate=0.01)
    output = client.object_info("TrainLoraNode")["TrainLoraNode"]["output"].index("LORA_MODEL")
    graph = text(steps=6) | two_images() | {"clean": image, "train": train}
    graph["patch"] = with_defaults(client, "LoraModelLoader", model=["loader", 2], lora=["train", output])
    found = drawn(client, graph | {"made": ksampler(model=["patch", 0], steps=6)}, "base", "made")
    assert gap(found["made"], found["base"]) > SEEN
    assert_unchanged(client, found["base"], steps=6)


def test_a_saved_model_has_all_weights_of_the_dit(client, comfy):
    """With the LoRA that it had, and with the table of positions."""
    graph = {"loader": loader(), "lora": lora("bare"), "saved": core("ModelSave", model=["lora", 0])}
    graph["saved"]["inputs"]["filename_prefix"] = "saved/model"
    result = client.run(graph)
    assert result.ok, result.error_text
    (path,) = (comfy.output / "saved").iterdir()
    prefix = "model.diffusion_model."
    saved = {key.removeprefix(prefix): tensor for key, tensor in load_file(path).items()}
    path.unlink()
    expected = load_file(comfy.models / "deepgen" / "with-lora" / FILE)
    assert saved.keys() == expected.keys()
    assert max((saved[key].float() - expected[key].float()).abs().max().item() for key in expected) < ROUNDING
