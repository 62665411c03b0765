"""What the declarations of several nodes share."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io


Pipeline = io.Custom("DEEPGEN_PIPELINE")
Conditioning = io.Custom("DEEPGEN_CONDITIONING")
Region = io.Custom("DEEPGEN_REGION")

GENERATION_MULTIPLE, EDITING_MULTIPLE = 16, 32
"""Of the sides, in pixels: a patch of the DiT, and with an image what one token of the vision-language model stands
for."""

LONGEST_SIDE = 6144
"""The position grid of DeepGen 1.0 covers 384 x 384 patches of 16 pixels (transformer/config.json). A smaller
checkpoint refuses what is too large for it when it runs."""


def pipeline() -> io.Input:
    """The model, as DeepGen Loader gives it."""
    return Pipeline.Input(
        "pipeline",
        tooltip="The model from DeepGen Loader; one loader serves every node.",
    )


def prompt(tooltip: str) -> io.Input:
    """A text of several lines, in which ``{a|b}`` is one of the two."""
    return io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="", tooltip=tooltip)


def negative_prompt(default: str = "") -> io.Input:
    """The text that classifier-free guidance leads away from."""
    return io.String.Input(
        "negative_prompt",
        multiline=True,
        dynamic_prompts=True,
        default=default,
        tooltip="What to avoid. Has no effect where cfg is 1 or less.",
    )


def seed() -> io.Input:
    """Of the noise: 64 bits."""
    return io.Int.Input(
        "seed",
        default=42,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The same seed with the same settings gives the same image; on another device, the same noise.",
    )


def steps() -> io.Input:
    """Number of denoising steps."""
    return io.Int.Input(
        "steps",
        default=50,
        min=1,
        max=1000,
        tooltip="Denoising steps. 50 is what the model was evaluated with. With the demo model, 20 is 2.5 times as "
        "fast and 12 is 4 times, for images that differ little; with 8, small things begin to be wrong.",
    )


def cfg() -> io.Input:
    """Scale of classifier-free guidance."""
    return io.Float.Input(
        "cfg",
        default=4.0,
        min=0.0,
        max=30.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance scale: how strongly the prompt is followed. 4 is the model's default; "
        "at 1 or less there is no guidance and a step takes half the time.",
    )


def side(name: str, multiple: int, tooltip: str) -> io.Input:
    """Width or height in pixels, a multiple of ``multiple``."""
    return io.Int.Input(name, default=512, min=multiple, max=LONGEST_SIDE, step=multiple, tooltip=tooltip)


def keep_unchanged() -> io.Input:
    """Whether what an edit left alone comes from the input. Workflows that were saved without it have the default."""
    return io.Boolean.Input(
        "keep_unchanged",
        default=False,
        optional=True,
        tooltip="Take all that the edit left alone from the image, at the image's own size. A shift of the edit is "
        "undone. An edit that changes everything is kept as it is.",
    )


def change_mask() -> io.Output:
    """Which pixels an edit changed."""
    return io.Mask.Output(
        display_name="change_mask",
        tooltip="White where the image comes from the edit, black where it is the input's own, to the bit. All white "
        "without keep_unchanged and mask.",
    )


def references(*numbers: int) -> list[io.Input]:
    """Optional inputs ``image_2`` and so on."""
    return [
        io.Image.Input(
            f"image_{number}",
            optional=True,
            tooltip=f"Reference {number}: one image, or a batch as large as image.",
        )
        for number in numbers
    ]


def advanced() -> dict[str, Any]:
    """For an input: the front end shows it on request, where ComfyUI has such inputs."""
    return {"advanced": True} if "advanced" in inspect.signature(io.Combo.Input.__init__).parameters else {}


def search_aliases(*words: str) -> dict[str, Any]:
    """For ``io.Schema``: words that find a node in the search, where ComfyUI has them (0.11 and later)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}
