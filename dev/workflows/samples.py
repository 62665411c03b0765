"""All sample workflows; `python -m dev.workflows` makes their files.

What runs in a sample as it is opened stays within what the demo model knows, so that it gives the right image on a
fresh install. What only DeepGen 1.0 can do is muted, in a row below. Long prompts are in `sample_texts.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dev.workflows.graph import (
    MUTED,
    Box,
    Node,
    edit,
    encode,
    generate,
    load,
    loader,
    preview,
    sample,
    save,
    vae_decode,
    vae_encode,
)
from nodes.names import CUSTOM, RESTORE


TEXTS = json.loads(Path(__file__).with_name("sample_texts.json").read_text(encoding="utf-8"))
PROMPTS = TEXTS["prompts"]
MUTED_GROUP = "With DeepGen 1.0 - unmute (Ctrl+M)"

COLUMN, HEIGHT = 440, 580
"""Width of a column, and height of the tallest node in a row."""
ROW = 720
"""Where the muted row begins."""
BELOW, THIRD_ROW = 640, 1240
"""In samples whose steps have images below them: where those begin, and the muted row."""
SIDE, SOFT_EDGE = 512, 48
"""What ImageCompositeMasked takes from the edit: the right half, with a soft edge."""


@dataclass
class Sample:
    """A sample workflow.

    Attributes:
        groups: By title.
        thumbnail: Keys of the nodes whose images it shows: what went in, and last the result.
    """

    name: str
    nodes: list[Node]
    groups: dict[str, list[Node]]
    thumbnail: list[str]


def complete(name: str, thumbnail: list[str], *content: str | Node) -> Sample:
    """A sample with loader and note.

    Args:
        content: Nodes, and before the first node of each group its title: that of a step, or `MUTED_GROUP`.
    """
    texts = ["\n\n".join(TEXTS[part][language] for part in (name, "model", "muted")) for language in ("en", "zh")]
    note = Node("note", "MarkdownNote", (0, 200, 380, 960), {"text": "\n\n---\n\n".join(texts)}, title="Read me")
    groups: dict[str, list[Node]] = {}
    title = ""
    for entry in ("Load model", loader(), *content):
        if isinstance(entry, str):
            title = entry if entry == MUTED_GROUP else f"Step {len(groups) + 1} - {entry}"
            groups[title] = []
        else:
            entry.mode = MUTED if title == MUTED_GROUP else 0
            groups[title].append(entry)
    first, *others = (node for members in groups.values() for node in members)
    return Sample(name, [first, note, *others], groups, thumbnail)


def at(column: float, y: int, height: int = HEIGHT, width: int = 400) -> Box:
    return (round(column * COLUMN), y, width, height)


def mask_nodes(x: float) -> list[Node]:
    """The right half of a square."""
    half = {"value": 1, "width": SIDE // 2, "height": SIDE}
    add = {"x": SIDE // 2, "y": 0, "operation": "add", "destination": ("nothing", 0), "source": ("soft", 0)}
    return [
        Node("nothing", "SolidMask", at(x, 0, 110, 280), {"value": 0, "width": SIDE, "height": SIDE}),
        Node("half", "SolidMask", at(x, 160, 110, 280), half),
        Node("soft", "FeatherMask", at(x, 320, 110, 280), {"left": SOFT_EDGE, "mask": ("half", 0)}),
        Node("mask", "MaskComposite", at(x + 0.75, 320, 150, 280), add),
    ]


def composite(key: str, box: Box, image: str, edited: str, mask: tuple[str, int]) -> Node:
    links = {"destination": (image, 0), "source": (edited, 0), "mask": mask}
    return Node(key, "ImageCompositeMasked", box, {"x": 0, "y": 0, "resize_source": False, **links})


SAMPLES = [
    complete(
        "deepgen_text_to_image",
        ["save"],
        "Generate",
        generate("image", at(1, 0), "a purple star in the middle on a white background"),
        save("save", at(2, 0), "image", "deepgen_picture"),
        MUTED_GROUP,
        generate("photo", at(1, ROW), PROMPTS["photo"]),
        save("save_photo", at(2, ROW), "photo", "deepgen_photo"),
        generate("text", at(3, ROW), PROMPTS["text"]),
        save("save_text", at(4, ROW), "text", "deepgen_text"),
    ),
    complete(
        "deepgen_edit_image",
        ["image", "save"],
        "Load image",
        load("image", at(1, 0, 400)),
        "Edit",
        edit("edit", at(2, 0), "image", "Put a yellow circle on the left."),
        save("save", at(3, 0), "edit", "deepgen_edited"),
        MUTED_GROUP,
        edit("paint", at(2, ROW), "image", PROMPTS["paint"]),
        save("save_painting", at(3, ROW), "paint", "deepgen_painting"),
    ),
    complete(
        "deepgen_generate_then_edit",
        ["save_generated", "save_edited"],
        "Generate",
        generate("generate", at(1, 0), "a red circle on the left on a white background"),
        save("save_generated", at(2, 0), "generate", "deepgen_generated"),
        "Edit",
        edit("edit", at(3, 0), "generate", "Make it blue."),
        save("save_edited", at(4, 0), "edit", "deepgen_edited"),
        MUTED_GROUP,
        generate("candle", at(1, ROW), PROMPTS["candle"]),
        save("save_candle", at(2, ROW), "candle", "deepgen_candle"),
        edit("wind", at(3, ROW), "candle", PROMPTS["wind"]),
        save("save_wind", at(4, ROW), "wind", "deepgen_wind"),
    ),
    complete(
        "deepgen_multi_step_edit",
        ["see_image", "see_first", "see_second", "save"],
        "Generate",
        generate("image", at(1, 0), "a yellow triangle at the top on a black background"),
        preview("see_image", at(1, BELOW, 440), "image"),
        "First edit",
        edit("first", at(2, 0), "image", "Make it purple."),
        preview("see_first", at(2, BELOW, 440), "first"),
        "Second edit",
        edit("second", at(3, 0), "first", "Move it to the bottom."),
        preview("see_second", at(3, BELOW, 440), "second"),
        "Third edit",
        edit("third", at(4, 0), "second", "Change the background to white."),
        save("save", at(4, BELOW, 440), "third", "deepgen_third_edit"),
        MUTED_GROUP,
        load("drawing", at(1, THIRD_ROW, 400)),
        edit("glasses", at(2, THIRD_ROW), "drawing", PROMPTS["glasses"]),
        edit("coat", at(3, THIRD_ROW), "glasses", PROMPTS["coat"]),
        edit("winter", at(4, THIRD_ROW), "coat", PROMPTS["winter"]),
        save("save_winter", at(5, THIRD_ROW), "winter", "deepgen_winter"),
    ),
    complete(
        "deepgen_multiple_references",
        ["see_image", "see_ground", "save"],
        "First image",
        generate("image", at(1, 0), "a red star on the left on a white background"),
        preview("see_image", at(1, BELOW, 440), "image"),
        "Second image",
        generate("ground", at(2, 0), "a blue square on the right on a brown background"),
        preview("see_ground", at(2, BELOW, 440), "ground"),
        "Edit with both",
        edit("edit", at(3, 0), "image", PROMPTS["both"], image_2=("ground", 0), size_mode=CUSTOM),
        save("save", at(4, 0), "edit", "deepgen_combined"),
        MUTED_GROUP,
        load("drawing", at(1, THIRD_ROW, 400)),
        generate("balloon", at(2, THIRD_ROW), PROMPTS["balloon"]),
        edit("fly", at(3, THIRD_ROW), "drawing", PROMPTS["fly"], image_2=("balloon", 0), size_mode=CUSTOM),
        save("save_fly", at(4, THIRD_ROW), "fly", "deepgen_balloon"),
    ),
    complete(
        "deepgen_edit_under_mask",
        ["see_image", "see_edit", "save"],
        "Generate",
        generate("image", at(1, 0), PROMPTS["circle and square"]),
        preview("see_image", at(1, BELOW, 440), "image"),
        "Edit",
        edit("edit", at(2, 0), "image", "Change the background to black.", size_mode=RESTORE),
        preview("see_edit", at(2, BELOW, 440), "edit"),
        "Make a mask",
        *mask_nodes(3),
        "Keep what is outside",
        composite("composite", at(4.5, 0, 160, 300), "image", "edit", ("mask", 0)),
        save("save", at(4.5, 240, 560), "composite", "deepgen_under_mask"),
        MUTED_GROUP,
        load("own", at(1, THIRD_ROW, 400)),
        edit("coat", at(2, THIRD_ROW), "own", PROMPTS["coat"], size_mode=RESTORE),
        composite("under", at(3, THIRD_ROW, 160, 300), "own", "coat", ("own", 1)),
        save("save_under", at(3.75, THIRD_ROW), "under", "deepgen_under_own_mask"),
    ),
    complete(
        "deepgen_modular",
        ["save", "save_change"],
        # The samplers have room for the live preview below their widgets.
        "Draw",
        encode("encode", at(1, 0, 460), "a green circle on the right on a black background"),
        sample("sample", at(2, 0, 440, 300), "encode"),
        vae_decode("decode", at(2, 500, 60, 300), "sample"),
        save("save", at(2.75, 0, 460), "decode", "deepgen_drawn"),
        "Change a part of it",
        vae_encode("back", at(2, 720, 60, 300), "decode"),
        encode("encode_change", at(1, 720, 460), "an orange triangle"),
        sample("change", at(2, 840, 440, 300), "encode_change", latent_image=("back", 0), denoise=0.5),
        vae_decode("decode_change", at(2, 1340, 60, 300), "change"),
        save("save_change", at(2.75, 720, 460), "decode_change", "deepgen_changed"),
        MUTED_GROUP,
        load("drawing", at(3.85, 0, 400)),
        encode("encode_edit", at(3.85, 460), PROMPTS["watercolor"], image=("drawing", 0)),
        sample("sample_edit", at(4.85, 0, 440, 300), "encode_edit"),
        vae_decode("decode_edit", at(4.85, 500, 60, 300), "sample_edit"),
        save("save_edit", at(4.85, 640), "decode_edit", "deepgen_painting"),
    ),
]
