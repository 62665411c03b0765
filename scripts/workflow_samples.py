"""The sample workflows, described: nodes, where they stand, what they say. `make_workflows` makes the files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


TEXTS = json.loads(Path(__file__).with_name("workflow_texts.json").read_text(encoding="utf-8"))
COLUMN = 440


@dataclass
class Node:
    """One node: where it stands, what its widgets say, and where its inputs come from."""

    key: str
    type: str
    box: tuple[int, int, int, int]  # x, y, width, height
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # input name: key of the node that feeds it
    title: str = ""


@dataclass
class Sample:
    name: str
    nodes: list[Node]
    groups: dict[str, list[str]]  # title: keys of the nodes in it


def loader() -> Node:
    return Node("loader", "DeepGenLoader", (0, 0, 380, 110))


def note(name: str) -> Node:
    text = "\n\n".join([TEXTS[name]["en"], TEXTS["model"]["en"], "---", TEXTS[name]["zh"], TEXTS["model"]["zh"]])
    return Node("note", "MarkdownNote", (0, 200, 380, 660), {"text": text}, title="Read me")


def generate(key: str, column: int, y: int, prompt: str) -> Node:
    widgets = {"prompt": prompt, "control_after_generate": "fixed"}
    return Node(key, "DeepGenTextToImage", (column * COLUMN, y, 400, 560), widgets, {"pipeline": "loader"})


def edit(key: str, column: int, y: int, image: str, prompt: str, **more: str) -> Node:
    links = {"pipeline": "loader", "image": image}
    widgets = {"prompt": prompt, "control_after_generate": "fixed"}
    for name, value in more.items():
        (links if name.startswith("image") else widgets)[name] = value
    return Node(key, "DeepGenEdit", (column * COLUMN, y, 400, 660), widgets, links)


def save(key: str, column: int, y: int, image: str, prefix: str) -> Node:
    box = (column * COLUMN, y, 400, 440)
    return Node(key, "SaveImage", box, {"filename_prefix": prefix}, {"images": image})


def preview(key: str, column: int, y: int, image: str) -> Node:
    return Node(key, "PreviewImage", (column * COLUMN, y, 400, 440), links={"images": image})


def load(key: str, column: int, y: int) -> Node:
    return Node(key, "LoadImage", (column * COLUMN, y, 400, 400), {"image": "example.png"})


SAMPLES = [
    Sample(
        "deepgen_text_to_image",
        [
            loader(),
            note("deepgen_text_to_image"),
            generate("photo", 1, 0, "a photo of a blue pizza and a yellow baseball glove"),
            save("save_photo", 2, 0, "photo", "deepgen_photo"),
            generate(
                "text",
                3,
                0,
                'A weathered wooden signpost at the edge of a misty forest trail. The words "DeepGen 1.0" are carved '
                "into it and painted white.",
            ),
            save("save_text", 4, 0, "text", "deepgen_text"),
        ],
        {
            "Step 1 - Load model": ["loader"],
            "Step 2 - Generate": ["photo", "save_photo"],
            "Step 3 - Render text": ["text", "save_text"],
        },
    ),
    Sample(
        "deepgen_edit_image",
        [
            loader(),
            note("deepgen_edit_image"),
            load("picture", 1, 0),
            edit(
                "edit",
                2,
                0,
                "picture",
                "Turn the drawing into a detailed watercolor painting. Keep the character with her yellow hair and "
                "pink dress, the green hill and the blue sky.",
            ),
            save("save", 3, 0, "edit", "deepgen_edited"),
        ],
        {
            "Step 1 - Load model": ["loader"],
            "Step 2 - Load picture": ["picture"],
            "Step 3 - Edit": ["edit", "save"],
        },
    ),
    Sample(
        "deepgen_generate_then_edit",
        [
            loader(),
            note("deepgen_generate_then_edit"),
            generate(
                "generate",
                1,
                0,
                "A tall red candle in a brass holder beside an open window, four hours after it was lit.",
            ),
            save("save_generated", 2, 0, "generate", "deepgen_generated"),
            edit(
                "edit",
                3,
                0,
                "generate",
                "Draw what the candle looks like a moment after a strong gust of wind comes through the window.",
            ),
            save("save_edited", 4, 0, "edit", "deepgen_edited"),
        ],
        {
            "Step 1 - Load model": ["loader"],
            "Step 2 - Generate": ["generate", "save_generated"],
            "Step 3 - Edit": ["edit", "save_edited"],
        },
    ),
    Sample(
        "deepgen_multi_step_edit",
        [
            loader(),
            note("deepgen_multi_step_edit"),
            load("picture", 1, 0),
            edit("first", 2, 0, "picture", "Put a pair of black sunglasses on the character."),
            preview("see_first", 2, 760, "first"),
            edit("second", 3, 0, "first", "Change the pink dress to a bright red winter coat."),
            preview("see_second", 3, 760, "second"),
            edit(
                "third",
                4,
                0,
                "second",
                "Make it a winter evening: snow on the hill, a dark blue sky with stars and a moon.",
            ),
            save("save", 4, 760, "third", "deepgen_third_edit"),
        ],
        {
            "Step 1 - Load model": ["loader"],
            "Step 2 - Load picture": ["picture"],
            "Step 3 - First edit": ["first", "see_first"],
            "Step 4 - Second edit": ["second", "see_second"],
            "Step 5 - Third edit": ["third", "save"],
        },
    ),
    Sample(
        "deepgen_multiple_references",
        [
            loader(),
            note("deepgen_multiple_references"),
            load("picture", 1, 0),
            generate("balloon", 1, 570, "a hot-air balloon with rainbow stripes, alone on a plain white background"),
            preview("see_balloon", 2, 570, "balloon"),
            edit(
                "edit",
                3,
                0,
                "picture",
                "Put the hot-air balloon of the second picture into the sky of the first picture, above the hill. "
                "Keep everything else.",
                image_2="balloon",
                size_mode="width and height",
            ),
            save("save", 4, 0, "edit", "deepgen_combined"),
        ],
        {
            "Step 1 - Load model": ["loader"],
            "Step 2 - First picture": ["picture"],
            "Step 3 - Second picture": ["balloon", "see_balloon"],
            "Step 4 - Edit with both": ["edit", "save"],
        },
    ),
]
