"""The sample workflows: complete, the same in the real front end, and running."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
OURS = {"DeepGenLoader", "DeepGenTextToImage", "DeepGenEdit"}
CORE = {"LoadImage", "SaveImage", "PreviewImage", "MarkdownNote"}
PICTURES = {
    "deepgen_text_to_image": 2,
    "deepgen_edit_image": 1,
    "deepgen_generate_then_edit": 2,
    "deepgen_multi_step_edit": 3,
    "deepgen_multiple_references": 2,
}


def ui(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def twin(name: str) -> dict:
    return json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def calls(prompt: dict) -> dict:
    """A prompt without what does not change its meaning."""
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def test_all_are_there():
    assert set(NAMES) == set(PICTURES)
    assert {path.stem for path in (ROOT / "tests" / "workflows").glob("*.json")} == set(NAMES)
    assert {path.suffix for path in (ROOT / "workflows").iterdir()} == {".json", ".jpg"}


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
        pictures = {node["inputs"]["image"] for node in twin(name).values() if node["class_type"] == "LoadImage"}
        assert pictures <= {"example.png"}

    def test_one_loader_and_the_defaults(self, name):
        nodes = list(twin(name).values())
        (loader,) = [node for node in nodes if node["class_type"] == "DeepGenLoader"]
        assert loader["inputs"] == {"model": "DeepGen-1.0-diffusers", "dtype": "auto", "capture_graph": False}
        for node in nodes:
            if node["class_type"] in OURS - {"DeepGenLoader"}:
                assert (node["inputs"]["steps"], node["inputs"]["cfg"]) == (50, 4.0)

    def test_a_note_tells_where_the_model_goes_in_both_languages(self, name):
        notes = "\n".join(node["widgets_values"][0] for node in ui(name)["nodes"] if node["type"] == "MarkdownNote")
        for words in ("models/deepgen", "huggingface.co", "modelscope", "python -m deepgen_npu download"):
            assert words in notes.lower()
        assert "\u6a21\u578b" in notes

    def test_its_thumbnail(self, name):
        with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
            assert thumbnail.format == "JPEG" and thumbnail.width >= 256 and not thumbnail.getexif()
        assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 100_000


@pytest.mark.parametrize("name", NAMES)
class TestInComfyUI:
    def test_the_template_browser_offers_it(self, comfy, name):
        templates = comfy.get("/workflow_templates").json()
        assert name in templates["ComfyUI-DeepGen"]
        served = comfy.get(f"/api/workflow_templates/ComfyUI-DeepGen/{name}.json")
        assert served.json() == ui(name)
        thumbnail = comfy.get(f"/api/workflow_templates/ComfyUI-DeepGen/{name}.jpg")
        assert thumbnail.body == (ROOT / "workflows" / f"{name}.jpg").read_bytes()

    def test_it_runs(self, comfy_client, name):
        """With the tiny checkpoint under the published name, and fewer steps."""
        prompt = twin(name)
        for node in prompt.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = 2
        result = comfy_client.run(prompt, timeout=300)
        assert result.ok, result.error_text
        assert len([image for image in result.images if image.size != (768, 768)]) == PICTURES[name]

    def test_the_front_end_reads_it_as_its_twin(self, comfy_page, name):
        comfy_page.load_graph(ui(name))
        assert comfy_page.missing_nodes() == [] and comfy_page.dialogs() == [] and comfy_page.alerts() == []
        assert calls(comfy_page.graph_to_prompt()) == calls(twin(name))
        # Saved and opened again it is still the same.
        saved = comfy_page.serialize()
        comfy_page.load_graph(saved)
        assert calls(comfy_page.graph_to_prompt()) == calls(twin(name))
        assert comfy_page.alerts() == [] and comfy_page.console_errors == [] and comfy_page.page_errors == []


def test_a_saved_picture_restores_its_workflow(comfy, comfy_client, comfy_page, tmp_path):
    name = "deepgen_generate_then_edit"
    prompt = twin(name)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    result = comfy_client.run(prompt, extra_data={"extra_pnginfo": {"workflow": ui(name)}}, timeout=300)
    assert result.ok, result.error_text
    picture = tmp_path / "picture.png"
    picture.write_bytes(result.files[0].data)
    comfy_page.drop_file(picture)
    assert calls(comfy_page.graph_to_prompt()) == calls(twin(name))
