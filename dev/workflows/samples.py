"""All sample workflows; `python -m dev.workflows` makes their files.

What runs in a sample as it is opened stays within what the demo model knows, so that it gives the right image on a
fresh install. What only DeepGen 1.0 can do is muted, in a grey group. Long prompts are in `sample_texts.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from dev.workflows.graph import (
    MUTED,
    Box,
    Node,
    cache,
    collapsed,
    crop_region,
    edit,
    encode,
    generate,
    ksampler,
    load,
    loader,
    lora,
    mask_to_image,
    noise_mask,
    preview,
    put_back,
    save,
    stitch,
    vae_decode,
    vae_encode,
)
from nodes.names import CUSTOM, RESTORE


TEXTS = json.loads(Path(__file__).with_name("sample_texts.json").read_text(encoding="utf-8"))
PROMPTS = TEXTS["prompts"]
MUTED_GROUP = "With DeepGen 1.0 (Ctrl+M)"

COLUMN, WIDTH = 352, 312
"""Of the columns in which nodes stand. The front end opens a sample at a size that shows all of it. At that size its
texts can be read on a laptop (1440 x 900) if the nodes take no more than 1740 x 1085: five columns of this height."""
BOTTOM = 1038
TOP, BELOW = 690, 740
"""Height of the upper node of a column, with room for a live preview below its widgets, and where the lower begins."""
TOP_OF_THREE, BELOW_OF_THREE, HEIGHT_OF_THREE = 638, 682, 270
"""The same where there is a row below these two (see `shelf`), and the height of the lower node."""
SHELF, ROW = 275, 50
"""From node to node there, and from row to row."""
BOTTOM_OVER_ROWS = 900
"""Where the columns end over two such rows."""
IN_ROW = 5
SHORT, TALL = (0, 0, 250, 330), (0, 0, 250, TOP)
"""Nodes there, once they are opened."""
LOADER, NOTE = 190, 250
"""Height of the loader, and where the note below it begins."""
SIDE, MARKED = 512, 256
"""Of the images that a large one is stitched from, and of what a mask marks in the middle of one of them. With the
context of `boxes.CONTEXT` that image is cut out as it is, so that the demo sees a scene that it knows."""


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


def complete(name: str, thumbnail: list[str], *content: str | Node, width: int = WIDTH) -> Sample:
    """A sample with loader and note.

    Args:
        name: Of its files.
        thumbnail: As of `Sample`.
        width: Of loader and note.
        content: Nodes, and before the first node of each group its title: that of a step, or `MUTED_GROUP`.
    """
    texts = ["\n\n".join(TEXTS[part][language] for part in (name, "model", "muted")) for language in ("en", "zh")]
    box = (0, NOTE, width, BOTTOM - NOTE)
    note = Node("note", "MarkdownNote", box, {"text": "\n\n---\n\n".join(texts)}, title="Read me")
    groups: dict[str, list[Node]] = {}
    title = ""
    for entry in ("Load model", loader((0, 0, width, LOADER)), *content):
        if isinstance(entry, str):
            title = entry if entry == MUTED_GROUP else f"Step {len(groups) + 1} - {entry}"
            groups[title] = []
        else:
            entry.mode = MUTED if title == MUTED_GROUP else 0
            groups[title].append(entry)
    first, *others = (node for members in groups.values() for node in members)
    return Sample(name, [first, note, *others], groups, thumbnail)


def at(column: int, y: int = 0, height: int = TOP) -> Box:
    return (column * COLUMN, y, WIDTH, height)


def below(column: int) -> Box:
    """Down to the bottom."""
    return at(column, BELOW, BOTTOM - BELOW)


def upper(column: int) -> Box:
    return at(column, 0, TOP_OF_THREE)


def lower(column: int) -> Box:
    return at(column, BELOW_OF_THREE, HEIGHT_OF_THREE)


def mask_nodes(column: int) -> list[Node]:
    """The middle of the last image of four, in a column from the top to 438."""
    place = 2 * SIDE - (SIDE + MARKED) // 2
    large = {"value": 0, "width": 2 * SIDE, "height": 2 * SIDE}
    part = {"value": 1, "width": MARKED, "height": MARKED}
    add = {"x": place, "y": place, "operation": "add", "destination": ("nothing", 0), "source": ("part", 0)}
    return [
        Node("nothing", "SolidMask", at(column, 0, 106), large),
        Node("part", "SolidMask", at(column, 156, 106), part),
        Node("mask", "MaskComposite", at(column, 312, 126), add),
    ]


def shelf(*nodes: Node, **titles: str) -> list[Node]:
    """Nodes side by side at the bottom, of which only the titles are seen: there is no room for more.

    Args:
        nodes: Whose places are given here; their sizes are those that they have once they are opened.
        titles: By the keys of nodes, what they do, in 20 letters at most: the front end shows no more.
    """
    rows = -(-len(nodes) // IN_ROW)
    for number, node in enumerate(nodes):
        row, place = divmod(number, IN_ROW)
        _, _, width, height = node.box
        node.box = (COLUMN + place * SHELF, BOTTOM - (rows - 1 - row) * ROW, width, height)
        node.title = titles.get(node.key, "")
    return [collapsed(node) for node in nodes]


def modular() -> Sample:
    """DeepGen as a model of ComfyUI's own nodes: six narrower columns, and two rows."""
    note, gap = 300, 36
    columns, x = {}, note + gap
    for name, width in (("encode", 250), ("sample", 246), ("decode", 246), ("encode_edit", 250), ("sample_edit", 246)):
        columns[name] = x, width
        x += width + gap
    height, row = 440, 560

    def box(column: str, y: int, height: int) -> Box:
        x, width = columns[column]
        return (x, y, width, height)

    return complete(
        "deepgen_modular",
        ["save", "save_change"],
        "Draw",
        encode("encode", box("encode", 0, height), "a green circle on the right on a black background"),
        ksampler("sample", box("sample", 0, height), "encode"),
        vae_decode("decode", box("decode", 0, 60), "sample"),
        save("save", box("decode", 120, height - 120), "decode", "deepgen_drawn"),
        "Image to image",
        vae_encode("back", box("encode", row, 55), "decode"),
        encode("encode_change", box("encode", row + 110, BOTTOM - row - 110), "an orange triangle"),
        ksampler("change", box("sample", row, BOTTOM - row), "encode_change", "back", denoise=0.5),
        vae_decode("decode_change", box("decode", row, 60), "change"),
        save("save_change", box("decode", row + 120, BOTTOM - row - 120), "decode_change", "deepgen_changed"),
        MUTED_GROUP,
        load("drawing", box("encode_edit", 640, BOTTOM - 640)),
        encode("encode_edit", box("encode_edit", 0, 570), PROMPTS["watercolor"], image=("drawing", 0)),
        ksampler("sample_edit", box("sample_edit", 0, 490), "encode_edit"),
        vae_decode("decode_edit", box("sample_edit", 550, 60), "sample_edit"),
        save("save_edit", box("sample_edit", 670, BOTTOM - 670), "decode_edit", "deepgen_painting"),
        width=note,
    )


def region_modular() -> Sample:
    """A region of a large image, inpainted by ComfyUI's own sampler: six narrower columns, and two rows below."""
    note, width, gap = 300, 248, 36

    def box(column: int, y: int, height: int) -> Box:
        return (note + gap + (column - 1) * (width + gap), y, width, height)

    def down_from(column: int, y: int) -> Box:
        return box(column, y, BOTTOM_OVER_ROWS - y)

    return complete(
        "deepgen_region_modular",
        ["see_image", "save"],
        "A large image",
        generate("image", box(1, 0, 750), "an orange triangle in the middle on a white background"),
        collapsed(stitch("row", box(1, 805, 150), "image", "right")),
        collapsed(stitch("large", box(1, 855, 150), "row", "down")),
        "Mark a part of it",
        *[replace(node, box=box(2, *node.box[1::2])) for node in mask_nodes(0)],
        preview("see_image", down_from(2, 488), "large"),
        "Cut it out",
        crop_region("crop", box(3, 0, 98), "large", ("mask", 0)),
        preview("see_crop", box(3, 160, 250), "crop"),
        "What to change",
        encode("encode", down_from(3, 518), "Make it blue.", image=("crop", 0), size_mode=RESTORE),
        "Inpaint",
        vae_encode("latent", box(4, 0, 46), "crop"),
        noise_mask("masked", box(4, 96, 46), "latent", ("crop", 1)),
        ksampler("sample", box(4, 192, 490), "encode", "masked"),
        "Put it back",
        vae_decode("decode", box(5, 0, 46), "sample"),
        put_back("back", box(5, 96, 78), "crop", "decode"),
        save("save", box(5, 244, 330), "back", "deepgen_region"),
        MUTED_GROUP,
        *shelf(
            load("own", SHORT),
            crop_region("crop_own", (0, 0, width, 98), "own", ("own", 1)),
            vae_encode("latent_own", (0, 0, width, 46), "crop_own"),
            noise_mask("masked_own", (0, 0, width, 46), "latent_own", ("crop_own", 1)),
            ksampler("sample_own", (0, 0, width, 490), "encode_own", "masked_own"),
            vae_decode("decode_own", (0, 0, width, 46), "sample_own"),
            put_back("back_own", (0, 0, width, 78), "crop_own", "decode_own"),
            save("save_own", SHORT, "back_own", "deepgen_own_region"),
            encode("encode_own", (0, 0, width, 440), PROMPTS["coat"], image=("crop_own", 0), size_mode=RESTORE),
            own="Load Image and mask",
            masked_own="Noise mask",
            encode_own="Encode: winter coat",
        ),
        width=note,
    )


SAMPLES = [
    complete(
        "deepgen_text_to_image",
        ["save"],
        "Generate",
        generate("image", at(1), "a purple star in the middle on a white background"),
        save("save", below(1), "image", "deepgen_picture"),
        MUTED_GROUP,
        generate("photo", at(2), PROMPTS["photo"]),
        save("save_photo", below(2), "photo", "deepgen_photo"),
        generate("text", at(3), PROMPTS["text"]),
        save("save_text", below(3), "text", "deepgen_text"),
    ),
    complete(
        "deepgen_edit_image",
        ["image", "save"],
        "Load image",
        load("image", at(1, 0, 400)),
        "Edit",
        edit("edit", at(2), "image", "Put a yellow circle on the left."),
        save("save", below(2), "edit", "deepgen_edited"),
        MUTED_GROUP,
        edit("paint", at(3), "image", PROMPTS["paint"]),
        save("save_painting", below(3), "paint", "deepgen_painting"),
    ),
    complete(
        "deepgen_generate_then_edit",
        ["save_generated", "save_edited"],
        "Generate",
        generate("generate", at(1), "a red circle on the left on a white background"),
        save("save_generated", below(1), "generate", "deepgen_generated"),
        "Edit",
        edit("edit", at(2), "generate", "Make it blue."),
        save("save_edited", below(2), "edit", "deepgen_edited"),
        MUTED_GROUP,
        generate("candle", at(3), PROMPTS["candle"]),
        save("save_candle", below(3), "candle", "deepgen_candle"),
        edit("wind", at(4), "candle", PROMPTS["wind"]),
        save("save_wind", below(4), "wind", "deepgen_wind"),
    ),
    complete(
        "deepgen_multi_step_edit",
        ["see_image", "see_first", "see_second", "save"],
        "Generate",
        generate("image", upper(1), "a yellow triangle at the top on a black background"),
        preview("see_image", lower(1), "image"),
        "First edit",
        edit("first", upper(2), "image", "Make it purple."),
        preview("see_first", lower(2), "first"),
        "Second edit",
        edit("second", upper(3), "first", "Move it to the bottom."),
        preview("see_second", lower(3), "second"),
        "Third edit",
        edit("third", upper(4), "second", "Change the background to white."),
        save("save", lower(4), "third", "deepgen_third_edit"),
        MUTED_GROUP,
        *shelf(
            load("drawing", SHORT),
            edit("glasses", TALL, "drawing", PROMPTS["glasses"]),
            edit("coat", TALL, "glasses", PROMPTS["coat"]),
            edit("winter", TALL, "coat", PROMPTS["winter"]),
            save("save_winter", SHORT, "winter", "deepgen_winter"),
            glasses="Edit: sunglasses",
            coat="Edit: winter coat",
            winter="Edit: winter evening",
        ),
    ),
    complete(
        "deepgen_multiple_references",
        ["see_image", "see_ground", "save"],
        "First image",
        generate("image", upper(1), "a red star on the left on a white background"),
        preview("see_image", lower(1), "image"),
        "Second image",
        generate("ground", upper(2), "a blue square on the right on a brown background"),
        preview("see_ground", lower(2), "ground"),
        "Edit with both",
        edit("edit", upper(3), "image", PROMPTS["both"], image_2=("ground", 0), size_mode=CUSTOM),
        save("save", lower(3), "edit", "deepgen_combined"),
        MUTED_GROUP,
        *shelf(
            load("drawing", SHORT),
            generate("balloon", TALL, PROMPTS["balloon"]),
            edit("fly", TALL, "drawing", PROMPTS["fly"], image_2=("balloon", 0), size_mode=CUSTOM),
            save("save_fly", SHORT, "fly", "deepgen_balloon"),
            balloon="Generate: a balloon",
            fly="Edit with both",
        ),
    ),
    complete(
        "deepgen_keep_unchanged",
        ["see_image", "save"],
        "Generate",
        generate("image", upper(1), "a blue triangle at the bottom on a white background"),
        preview("see_image", lower(1), "image"),
        "Edit and keep the rest",
        edit("edit", upper(2), "image", "Make it red.", keep_unchanged=True),
        save("save", lower(2), "edit", "deepgen_kept"),
        "What has changed",
        mask_to_image("change", at(3, 0, 26), ("edit", 1)),
        preview("see_change", at(3, 70, 360), "change"),
        MUTED_GROUP,
        *shelf(
            load("own", SHORT),
            edit("coat", TALL, "own", PROMPTS["coat"], keep_unchanged=True),
            save("save_own", SHORT, "coat", "deepgen_kept_own"),
            coat="Edit: winter coat",
        ),
    ),
    complete(
        "deepgen_edit_under_mask",
        ["see_image", "see_mask", "save"],
        "Generate",
        generate("image", upper(1), "a green circle in the middle on a black background"),
        preview("see_one", lower(1), "image"),
        "Stitch a large image",
        stitch("row", at(2, 0, 150), "image", "right"),
        stitch("large", at(2, 194, 150), "row", "down"),
        preview("see_image", at(2, 388, 564), "large"),
        "Mark what may change",
        *mask_nodes(3),
        mask_to_image("mask_image", at(3, 482, 26), ("mask", 0)),
        preview("see_mask", at(3, 552, 400), "mask_image"),
        "Edit under the mask",
        edit("edit", upper(4), "large", "Make it orange.", mask=("mask", 0)),
        save("save", lower(4), "edit", "deepgen_under_mask"),
        MUTED_GROUP,
        *shelf(
            load("own", SHORT),
            edit("coat", TALL, "own", PROMPTS["coat"], mask=("own", 1)),
            save("save_under", SHORT, "coat", "deepgen_under_own_mask"),
            own="Load Image and mask",
            coat="Edit: winter coat",
        ),
    ),
    region_modular(),
    modular(),
    complete(
        "deepgen_lora_and_cache",
        ["save"],
        "Draw with a cache",
        encode("encode", at(1), "a purple star in the middle on a white background"),
        save("save", below(1), "decode", "deepgen_cached"),
        cache("cache", at(2, 0, 140)),
        ksampler("sample", at(2, 210, 480), "encode", model=("cache", 0)),
        vae_decode("decode", at(2, BELOW, 60), "sample"),
        MUTED_GROUP,
        lora("lora", at(3, 0, 150)),
        cache("cache_lora", at(3, 210, 140), ("lora", 1)),
        ksampler("sample_lora", at(3, 410, 480), "encode", model=("cache_lora", 0)),
        vae_decode("decode_lora", at(3, 950, 60), "sample_lora"),
        save("save_lora", at(4, 0, 400), "decode_lora", "deepgen_lora"),
    ),
]
