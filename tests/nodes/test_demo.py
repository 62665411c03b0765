"""The demo checkpoint in a real ComfyUI: what the images of the sample workflows show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nodes.names import DEMO, EITHER
from training.judge import RecognisedThing, recognise


ROOT = Path(__file__).parents[2]
PUBLISHED = "DeepGen-1.0-diffusers"
NAMES = sorted(path.stem for path in (ROOT / "tests" / "workflows").glob("*.json"))

# What each saved or previewed image shows: background, and colour, shape and place of all that is in it.
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
    "deepgen_lora_and_cache": [("white", {("purple", "star", "centre")})],
}
# Of a large image with the same shape in each quarter, one is edited: shape, colour, and colour of the last.
ONE_OF_FOUR = {
    "deepgen_edit_under_mask": ("circle", "green", "orange"),
    "deepgen_region_modular": ("triangle", "orange", "blue"),
}
MARKED = slice(640, 896)
"""Rows and columns of its mask."""


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
    def described(thing: RecognisedThing) -> tuple[str, str, str]:
        return thing.colour, thing.shape, thing.place

    return {described(thing) for thing in recognise(image).things}


@pytest.fixture
def fresh_install(comfy) -> Iterator[None]:
    """No model but the demo."""
    models = comfy.base / "models" / "deepgen"
    aside = models.rename(models.with_name("aside"))
    yield
    aside.rename(models)


def images(comfy_client, name: str) -> list:
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
        others = {"deepgen_edit_image", "deepgen_keep_unchanged", *ONE_OF_FOUR}
        assert set(SHOWN) | others == set(NAMES)

    @pytest.mark.parametrize("name", SHOWN)
    def test_every_image_is_right(self, comfy_client, fresh_install, name):
        seen = images(comfy_client, name)
        assert {image.size for image in seen} == {(512, 512)}
        # In no certain order: the nodes of a sample are numbered by where they stand.
        found = [(recognise(image).background, things(image)) for image in seen]
        assert sorted(found, key=repr) == sorted(SHOWN[name], key=repr)

    def test_an_image_of_the_users_is_edited(self, comfy_client, fresh_install):
        """The demo redraws it as a shape, but the circle that the prompt asks for is there."""
        (edited,) = images(comfy_client, "deepgen_edit_image")
        assert edited.size == (512, 512) and ("yellow", "circle", "left") in things(edited)

    @pytest.mark.parametrize("name", ONE_OF_FOUR)
    def test_outside_of_the_mask_nothing_changes(self, comfy_client, fresh_install, name):
        shape, colour, new = ONE_OF_FOUR[name]
        seen = [image for image in images(comfy_client, name) if image.size == (1024, 1024)]
        drawn, result = (np.asarray(image.convert("RGB")) for image in (seen[0], seen[-1]))
        quarters = [result[top : top + 512, left : left + 512] for top in (0, 512) for left in (0, 512)]
        expected = [{(each, shape, "centre")} for each in (colour, colour, colour, new)]
        assert [things(quarter) for quarter in quarters] == expected
        changed = (drawn != result).any(-1)
        assert changed[MARKED, MARKED].mean() > 0.5
        changed[MARKED, MARKED] = False
        assert not changed.any()

    def test_what_was_left_alone_is_kept(self, comfy_client, fresh_install):
        drawn, edited, change = images(comfy_client, "deepgen_keep_unchanged")
        assert things(drawn) == {("blue", "triangle", "bottom")} and things(edited) == {("red", "triangle", "bottom")}
        kept = np.asarray(change.convert("L")) == 0
        before, after = (np.asarray(image.convert("RGB")) for image in (drawn, edited))
        assert kept.mean() > 0.4 and np.array_equal(before[kept], after[kept])


class TestImages:
    def test_an_image_is_shown_without_smoothing(self, comfy_client):
        prompt = sample("deepgen_text_to_image", width=512, height=768, steps=4, batch_size=1)
        result = comfy_client.run(prompt, timeout=300)
        assert result.ok, result.error_text
        assert result.images
        for image in result.images:
            assert image.size == (512, 768)
            small = image.resize((64, 96), resample=0)
            assert small.resize(image.size, resample=0).tobytes() == image.tobytes()
