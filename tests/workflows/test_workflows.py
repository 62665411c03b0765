"""The sample workflows: complete, the same in the real front end, and running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dev.comfyui.graphs import array
from dev.workflows.graph import CHOOSE
from nodes.names import EITHER


ROOT = Path(__file__).parents[2]
PACK = "ComfyUI-DeepGen"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
RELEASES = sorted((ROOT / "tests" / "workflows" / "releases").glob("*/ui/*.json"))
BEFORE_MODEL_OUTPUT = ROOT / "tests" / "workflows" / "releases" / "before_model_output"
"""From before the loader had a MODEL and ComfyUI's samplers could draw."""
OURS = {
    *("DeepGenLoader", "DeepGenTextToImage", "DeepGenEdit", "DeepGenEncode", "DeepGenSample", "DeepGenLoRA"),
    *("DeepGenCropRegion", "DeepGenPutBack"),
}
CORE = {
    *("LoadImage", "SaveImage", "PreviewImage", "MarkdownNote", "VAEDecode", "VAEEncode", "KSampler"),
    *("LazyCache", "SolidMask", "MaskComposite", "MaskToImage", "ImageStitch", "SetLatentNoiseMask"),
}
MUTED = 2
LORA = "sample.safetensors"
ABILITIES = {
    "generation": ("DeepGenTextToImage", "pizza"),
    "rendering of text": ("DeepGenTextToImage", '"DeepGen 1.0"'),
    "editing": ("DeepGenEdit", "watercolor"),
    "reasoning generation": ("DeepGenTextToImage", "four hours after it was lit"),
    "reasoning editing": ("DeepGenEdit", "gust of wind"),
}
"""The five abilities that the muted nodes show: a node that has it, and words of its prompt."""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def ui(name: str) -> dict[str, Any]:
    return read(ROOT / "workflows" / f"{name}.json")


def twin(name: str) -> dict[str, Any]:
    return read(ROOT / "tests" / "workflows" / f"{name}.json")


def calls(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt without what does not change its meaning."""
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def in_one_step(prompt: dict[str, Any]) -> dict[str, Any]:
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    return prompt


def prompt_of(node: dict[str, Any]) -> str:
    """The positive prompt: the first widget that holds text."""
    return next(value for value in node["widgets_values"] if isinstance(value, str))


def unmuted(workflow: dict[str, Any]) -> dict[str, Any]:
    """All of it, with a LoRA where there is none."""
    for node in workflow["nodes"]:
        node["mode"] = 0
        if node["type"] == "DeepGenLoRA":
            assert node["widgets_values"] == [CHOOSE, 1]
            node["widgets_values"][0] = LORA
    return workflow


def write_lora(path: Path) -> None:
    """For the tiny checkpoint."""
    path.parent.mkdir(exist_ok=True)
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file({f"{name}.lora_A.weight": torch.zeros(2, 32), f"{name}.lora_B.weight": torch.zeros(32, 2)}, str(path))


def test_all_are_there():
    assert len(NAMES) >= 10 and len(RELEASES) >= 5
    assert {path.stem for path in (ROOT / "tests" / "workflows").glob("*.json")} == set(NAMES)
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == set(NAMES)
    assert {path.suffix for path in (ROOT / "workflows").iterdir()} == {".json", ".jpg"}


def test_they_show_what_deepgen_can_do():
    muted = [node for name in NAMES for node in ui(name)["nodes"] if node["mode"] == MUTED and node["type"] in OURS]
    shown = [
        ability
        for ability, (type, words) in ABILITIES.items()
        for node in muted
        if node["type"] == type and words in prompt_of(node)
    ]
    assert sorted(shown) == sorted(ABILITIES)


@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_it_opens_on_every_machine(self, name):
        workflow = ui(name)
        assert workflow["version"] == 0.4
        assert {node["type"] for node in workflow["nodes"]} <= OURS | CORE
        for node in workflow["nodes"]:
            if node["type"] in OURS:
                assert node["properties"]["cnr_id"] == "deepgen"
        text = json.dumps(workflow)
        assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", text)
        images = {node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "LoadImage"}
        assert images <= {"example.png"}

    def test_one_loader_and_the_defaults(self, name):
        nodes = list(twin(name).values())
        (loader,) = [node for node in nodes if node["class_type"] == "DeepGenLoader"]
        placed = {"capture_graph": False, "text_encoder_device": "default"}
        assert loader["inputs"] == {"model": EITHER, "dtype": "auto", **placed}
        drawing = [node["inputs"] for node in nodes if "steps" in node["inputs"]]
        assert drawing and {(inputs["steps"], inputs["cfg"]) for inputs in drawing} == {(50, 4.0)}

    def test_a_note_says_where_the_model_goes_in_both_languages(self, name):
        notes = "\n".join(node["widgets_values"][0] for node in ui(name)["nodes"] if node["type"] == "MarkdownNote")
        english, chinese = notes.split("\n---\n")
        for words in (
            "models/deepgen",
            "huggingface.co",
            "modelscope",
            "python -m deepgen_npu download",
            "**Ctrl+M**",
        ):
            assert words in english and words in chinese
        assert english.isascii() and "\u6a21\u578b" in chinese

    def test_its_thumbnail(self, name):
        path = ROOT / "workflows" / f"{name}.jpg"
        with Image.open(path) as thumbnail:
            # The cards of the template browser are square.
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 512)) and not thumbnail.getexif()
        assert path.stat().st_size < 60_000


@pytest.mark.parametrize("name", NAMES)
def test_the_server_offers_it(comfy, name):
    assert name in comfy.get("/workflow_templates").json()[PACK]
    assert comfy.get(f"/api/workflow_templates/{PACK}/{name}.json").json() == ui(name)
    thumbnail = comfy.get(f"/api/workflow_templates/{PACK}/{name}.jpg")
    assert thumbnail.body == (ROOT / "workflows" / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_in_the_front_end(comfy, comfy_client, comfy_page, tmp_path, name):
    """Opened from the template browser, saved and opened again, run, and restored from an image."""
    comfy_page.open_template(PACK, name)
    assert comfy_page.missing_nodes() == [] and comfy_page.dialogs() == []
    assert calls(comfy_page.graph_to_prompt()) == calls(twin(name))
    saved = comfy_page.serialize()
    comfy_page.load_graph(saved)
    assert calls(comfy_page.graph_to_prompt()) == calls(twin(name))

    write_lora(comfy.models / "loras" / LORA)
    # What is muted is also complete: with the tiny checkpoint under the published name.
    comfy_page.load_graph(unmuted(saved))
    everything = comfy_page.graph_to_prompt()
    assert len(everything) > len(twin(name)) and calls(twin(name)).items() <= calls(everything).items()
    extra = {"extra_pnginfo": {"workflow": comfy_page.serialize()}}
    result = comfy_client.run(in_one_step(everything), extra_data=extra, timeout=300)
    assert result.ok, result.error_text
    assert {file.node for file in result.files} == {
        key for key, node in everything.items() if node["class_type"] in ("SaveImage", "PreviewImage")
    }

    image = tmp_path / "image.png"
    image.write_bytes(next(file.data for file in result.files if file.type == "output"))
    comfy_page.page.evaluate("() => window.app.graph.clear()")
    comfy_page.drop_file(image)
    assert calls(in_one_step(comfy_page.graph_to_prompt())) == calls(everything)
    assert comfy_page.alerts() == [] and comfy_page.console_errors == [] and comfy_page.page_errors == []


def test_a_bypassed_lora_passes_on_pipeline_and_model(comfy_page):
    workflow = unmuted(ui("deepgen_lora_and_cache"))
    (lora,) = [node for node in workflow["nodes"] if node["type"] == "DeepGenLoRA"]
    comfy_page.load_graph(workflow)
    changed = """id => {
        const {graph} = window.app, node = graph.getNodeById(id), [loader] = graph.findNodesByType("DeepGenLoader");
        const made = LiteGraph.createNode("DeepGenTextToImage");
        graph.add(made);
        loader.connect(2, node, "model");
        node.connect(0, made, "pipeline");
        node.mode = 4;
        return String(made.id);
    }"""
    generate = comfy_page.page.evaluate(changed, lora["id"])
    prompt = comfy_page.graph_to_prompt()
    (loader,) = [key for key, node in prompt.items() if node["class_type"] == "DeepGenLoader"]
    assert prompt[generate]["inputs"]["pipeline"] == [loader, 0] and str(lora["id"]) not in prompt
    caches = [node["inputs"]["model"] for node in prompt.values() if node["class_type"] == "LazyCache"]
    assert caches == [[loader, 2]] * 2


def test_workflows_of_every_release_open_and_run(comfy_client, comfy_page):
    for path in RELEASES:
        kept = read(path.parents[1] / "api" / path.name)
        comfy_page.load_graph(read(path))
        assert comfy_page.missing_nodes() == [] and comfy_page.dialogs() == [], path
        now = comfy_page.graph_to_prompt()
        assert set(now) == set(kept), path
        for key, node in kept.items():
            assert now[key]["class_type"] == node["class_type"]
            added = {name: now[key]["inputs"].pop(name) for name in set(now[key]["inputs"]) - set(node["inputs"])}
            assert now[key]["inputs"] == node["inputs"], path
            assert added == defaults(comfy_client, node["class_type"], added), path
        result = comfy_client.run(in_one_step(kept), timeout=300)
        assert result.ok, (path, result.error_text)
        assert result.images, path
    assert comfy_page.alerts() == [] and comfy_page.console_errors == [] and comfy_page.page_errors == []


def test_modular_draws_with_ksampler_what_it_drew_with_our_sampler(comfy_client):
    drawn = []
    for prompt in (twin("deepgen_modular"), read(BEFORE_MODEL_OUTPUT / "api" / "deepgen_modular.json")):
        result = comfy_client.run(in_one_step(prompt), timeout=300)
        assert result.ok, result.error_text
        drawn.append({file.node: array(file.image) for file in result.files})
    now, before = drawn
    assert len(now) == 2 and now.keys() == before.keys()
    for node, image in now.items():
        assert np.abs(image - before[node]).max() <= 1 and image.std() > 1


def defaults(comfy_client, node: str, names) -> dict[str, Any]:
    groups = comfy_client.object_info(node)[node]["input"]
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    return {name: inputs[name][1]["default"] for name in names}
