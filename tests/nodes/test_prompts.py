"""Texts that are not prompts, through a real ComfyUI: an error of the node before it reads weights."""

from __future__ import annotations

import pytest

from dev.comfyui.graphs import edit, generation, load_image, loader, save


TEXTS = {
    "\ud800": "must be Unicode text, got a lone surrogate (U+D800) as character 1.",
    "a <|image_pad|>": "must not contain <|image_pad|>, the model's placeholder for images.",
    "word " * 1000: "must have at most 4,096 tokens with the template around it, got ",
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
