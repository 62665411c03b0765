"""The demo checkpoint in a real ComfyUI: what the pictures of the sample workflows show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nodes.names import DEMO, EITHER
from training.judge import SeenThing, look


ROOT = Path(__file__).parents[2]
PUBLISHED = "DeepGen-1.0-diffusers"
NAMES = sorted(path.stem for path in (ROOT / "tests" / "workflows").glob("*.json"))

# What each saved or previewed picture shows: background, and colour, shape and place of all that is in it.
RED_LEFT, BLUE_RIGHT = ("red", "circle", "left"), ("blue", "square", "right")
SHOWN = {
    "deepgen_text_to_image": [("white", {("purple", "star", "centre")})],
    "deepgen_generate_then_edit": [("white", {RED_LEFT}), ("white", {("blue", "circle", "left")})],
    "deepgen_multi_step_edit": [
        ("black", {("yellow", "triangle", "top")}),
        ("black", {("purple", "triangle", "top")}),
        ("black", {("purple", "triangle", "bottom")}),
        ("white", {("purple", "triangle", "bottom")}),
    ],
    "deepgen_multiple_references": [
        ("white", {("red", "star", "left")}),
        ("brown", {BLUE_RIGHT}),
        ("brown", {("red", "star", "left")}),
    ],
    "deepgen_modular": [
        ("black", {("green", "circle", "right")}),
        ("black", {("orange", "triangle", "right")}),
    ],
}


def sample(name: str, **changes) -> dict:
    """A sample workflow with the demo checkpoint in its loader."""
    prompt = twin(name)
    for node in prompt.values():
        if node["class_type"] == "DeepGenLoader":
            node["inputs"]["model"] = DEMO
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return prompt


def twin(name: str) -> dict:
    return json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def model_input(comfy_client) -> tuple[list[str], str]:
    """The names that the loader offers, and the one that a new loader has."""
    kind, options = comfy_client.object_info("DeepGenLoader")["DeepGenLoader"]["input"]["required"]["model"]
    return (options["options"] if kind == "COMBO" else kind), options["default"]


def things(image) -> set[tuple[str, str, str]]:
    def told(thing: SeenThing) -> tuple[str, str, str]:
        return thing.colour, thing.shape, thing.place

    return {told(thing) for thing in look(image).things}


@pytest.fixture
def fresh_install(comfy) -> Iterator[None]:
    """No model but the demo."""
    models = comfy.base / "models" / "deepgen"
    aside = models.rename(models.with_name("aside"))
    yield
    aside.rename(models)


def pictures(comfy_client, name: str) -> list:
    """What a sample shows that runs as it is, in the order of its nodes."""
    result = comfy_client.run(twin(name), timeout=300)
    assert result.ok, result.error_text
    return [file.image for file in sorted(result.files, key=lambda file: int(file.node))]


class TestLoader:
    def test_the_demo_comes_last_where_there_are_models(self, comfy_client):
        names, default = model_input(comfy_client)
        assert names[-2:] == [EITHER, DEMO] and default == PUBLISHED

    def test_the_demo_is_chosen_where_there_is_no_model(self, comfy_client, fresh_install):
        assert model_input(comfy_client) == ([PUBLISHED, EITHER, DEMO], DEMO)


class TestSamplesOnAFreshInstall:
    """Unchanged: sizes, steps, guidance, prompts and the model's name are the sample's."""

    def test_all_are_judged(self):
        assert set(SHOWN) | {"deepgen_edit_image", "deepgen_edit_under_mask"} == set(NAMES)

    @pytest.mark.parametrize("name", SHOWN)
    def test_every_picture_is_right(self, comfy_client, fresh_install, name):
        seen = pictures(comfy_client, name)
        assert {picture.size for picture in seen} == {(512, 512)}
        # In no certain order: the nodes of a sample are numbered by where they stand.
        found = [(look(picture).background, things(picture)) for picture in seen]
        assert sorted(found, key=repr) == sorted(SHOWN[name], key=repr)

    def test_a_picture_of_the_users_is_edited(self, comfy_client, fresh_install):
        """It makes a shape of the drawing, but what it was told to add is there."""
        (edited,) = pictures(comfy_client, "deepgen_edit_image")
        assert edited.size == (512, 512) and ("yellow", "circle", "left") in things(edited)

    def test_outside_of_the_mask_nothing_changes(self, comfy_client, fresh_install):
        drawn, edited, result = (
            np.asarray(picture.convert("RGB")) for picture in pictures(comfy_client, "deepgen_edit_under_mask")
        )
        both = {("red", "circle", "left"), ("blue", "square", "right")}
        assert (look(drawn).background, things(drawn)) == ("white", both)
        assert (look(edited).background, things(edited)) == ("black", both)
        middle, soft = 256, 48
        assert np.array_equal(result[:, :middle], drawn[:, :middle])
        assert np.array_equal(result[:, middle + soft :], edited[:, middle + soft :])


class TestPictures:
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
        assert "width must be at most 1024 with this model, got 1536." in result.error_text
