"""The demo checkpoint in a real ComfyUI: what the pictures of the sample workflows show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.judge import SeenThing, look


ROOT = Path(__file__).parents[2]
DEMO = "coloured shapes (demo, not DeepGen 1.0)"
NAMES = sorted(path.stem for path in (ROOT / "tests" / "workflows").glob("*.json"))


def sample(name: str, **changes) -> dict:
    """A sample workflow with the demo checkpoint in its loader."""
    prompt = json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "DeepGenLoader":
            node["inputs"]["model"] = DEMO
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return prompt


def node_of(prompt: dict, class_type: str) -> str:
    (key,) = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return key


def model_input(comfy_client) -> tuple[list[str], str]:
    """The names that the loader offers, and the one that a new loader has."""
    kind, options = comfy_client.object_info("DeepGenLoader")["DeepGenLoader"]["input"]["required"]["model"]
    return (options["options"] if kind == "COMBO" else kind), options["default"]


def things(image) -> list[tuple[str, str, str]]:
    def told(thing: SeenThing) -> tuple[str, str, str]:
        return thing.colour, thing.shape, thing.place

    return [told(thing) for thing in look(image).things]


class TestLoader:
    def test_the_demo_comes_last_where_there_are_models(self, comfy_client):
        names, default = model_input(comfy_client)
        assert names[-1] == DEMO and default == "DeepGen-1.0-diffusers"

    def test_the_demo_is_chosen_where_there_is_no_model(self, comfy, comfy_client):
        models = comfy.base / "models" / "deepgen"
        aside = models.rename(models.with_name("aside"))
        try:
            assert model_input(comfy_client) == (["DeepGen-1.0-diffusers", DEMO], DEMO)
        finally:
            aside.rename(models)


class TestPictures:
    def test_the_chained_workflow_draws_and_then_edits(self, comfy_client):
        """Unchanged but for model and prompts: sizes, steps, guidance and negative prompts are the sample's."""
        prompt = sample("deepgen_generate_then_edit")
        generate, edit = node_of(prompt, "DeepGenTextToImage"), node_of(prompt, "DeepGenEdit")
        prompt[generate]["inputs"]["prompt"] = "a red circle on the left on a white background"
        prompt[edit]["inputs"]["prompt"] = "make it blue"
        result = comfy_client.run(prompt, timeout=300)
        assert result.ok, result.error_text
        saved = {prompt[file.node]["inputs"]["images"][0]: file.image for file in result.files}
        drawn, edited = saved[generate], saved[edit]
        assert drawn.size == edited.size == (512, 512)
        assert (look(drawn).background, things(drawn)) == ("white", [("red", "circle", "left")])
        assert (look(edited).background, things(edited)) == ("white", [("blue", "circle", "left")])

    def test_a_picture_is_shown_without_smoothing(self, comfy_client):
        prompt = sample("deepgen_text_to_image", width=512, height=768, steps=4, batch_size=1)
        result = comfy_client.run(prompt, timeout=300)
        assert result.ok, result.error_text
        assert result.images
        for image in result.images:
            assert image.size == (512, 768)
            small = image.resize((64, 96), resample=0)
            assert small.resize(image.size, resample=0).tobytes() == image.tobytes()

    def test_a_size_beyond_its_own_is_refused_in_the_terms_of_the_node(self, comfy_client):
        result = comfy_client.run(sample("deepgen_text_to_image", width=1536, steps=4), timeout=300)
        assert "width is 1536; with this model at most 1024 is wanted" in result.error_text

    @pytest.mark.parametrize("name", NAMES)
    def test_every_sample_runs_with_it(self, comfy_client, name):
        result = comfy_client.run(sample(name, steps=3), timeout=300)
        assert result.ok, result.error_text
        assert result.images
