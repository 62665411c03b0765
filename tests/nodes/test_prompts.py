"""Texts that are no prompts, through a real ComfyUI: an error of the node before it reads weights."""

from __future__ import annotations

import pytest

from dev.comfyui.graphs import edit, generation, load_image, loader, save


TEXTS = {
    "\ud800": "has a lone surrogate (U+D800) as character 1",
    "a <|image_pad|>": "contains <|image_pad|>, which stands for a picture",
    "word " * 1000: "tokens with the template around it; at most 4,096 are wanted",
}


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", TEXTS, ids=["surrogate", "placeholder", "too long"])
def test_a_text_is_refused_before_weights_are_read(comfy_client, name, text):
    # In a dtype in which no other test reads this model, so that its weights are not there yet.
    given = {"loader": loader("DeepGen-1.0-diffusers", dtype="float16"), "image": load_image("example.png")}
    for make in (generation(**{name: text}), edit("image", **{name: text})):
        result = comfy_client.run({**given, "make": make, "saved": save("make")})
        assert result.error is not None and result.error["node_type"] == make["class_type"]
        message = result.error["exception_message"]
        assert message.startswith(f"{name} ") and TEXTS[text] in message
        assert [progress for progress in result.progress if progress.node == "make"] == [], "weights were read"
