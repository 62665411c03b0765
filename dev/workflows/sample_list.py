"""All sample workflows."""

from __future__ import annotations

from dev.workflows.samples import (
    ROW,
    Node,
    at,
    complete,
    decode,
    edit,
    encode,
    generate,
    load,
    muted,
    preview,
    sample,
    save,
)


# What ImageCompositeMasked takes from the edit: the right half, with a soft edge.
SIDE, SOFT_EDGE = 512, 48
# Of the sample with several steps: the pictures below the steps, and what is muted below those.
BELOW, THIRD_ROW = 640, 1240


def steps(*lines: tuple[str, list[str]]) -> dict[str, list[str]]:
    return {f"Step {number} - {title}": keys for number, (title, keys) in enumerate(lines, start=2)}


def mask_nodes(x: float, y: int) -> list[Node]:
    def small(key: str, type: str, row: int, widgets: dict, links: dict) -> Node:
        return Node(key, type, at(x, y + row, 110, 280), widgets, links)

    return [
        small("nothing", "SolidMask", 0, {"value": 0, "width": SIDE, "height": SIDE}, {}),
        small("half", "SolidMask", 160, {"value": 1, "width": SIDE // 2, "height": SIDE}, {}),
        small("soft", "FeatherMask", 320, {"left": SOFT_EDGE}, {"mask": "half"}),
        Node(
            "mask",
            "MaskComposite",
            at(x + 0.75, y + 320, 150, 280),
            {"x": SIDE // 2, "y": 0, "operation": "add"},
            {"destination": "nothing", "source": "soft"},
        ),
    ]


def composite(key: str, x: float, y: int, picture: str, edited: str, mask: str) -> Node:
    links = {"destination": picture, "source": edited, "mask": mask}
    return Node(key, "ImageCompositeMasked", at(x, y, 160, 300), {"x": 0, "y": 0, "resize_source": False}, links)


SAMPLES = [
    complete(
        "deepgen_text_to_image",
        [
            generate("picture", 1, 0, "a purple star in the middle on a white background"),
            save("save", 2, 0, "picture", "deepgen_picture"),
            *muted(
                generate("photo", 1, ROW, "a photo of a blue pizza and a yellow baseball glove"),
                save("save_photo", 2, ROW, "photo", "deepgen_photo"),
                generate(
                    "text",
                    3,
                    ROW,
                    'A weathered wooden signpost at the edge of a misty forest trail. The words "DeepGen 1.0" are '
                    "carved into it and painted white.",
                ),
                save("save_text", 4, ROW, "text", "deepgen_text"),
            ),
        ],
        steps(("Generate", ["picture", "save"])),
        ["save"],
    ),
    complete(
        "deepgen_edit_image",
        [
            load("picture", 1, 0),
            edit("edit", 2, 0, "picture", "Put a yellow circle on the left."),
            save("save", 3, 0, "edit", "deepgen_edited"),
            *muted(
                edit(
                    "paint",
                    2,
                    ROW,
                    "picture",
                    "Turn the drawing into a detailed watercolor painting. Keep the character with her yellow hair "
                    "and pink dress, the green hill and the blue sky.",
                ),
                save("save_painting", 3, ROW, "paint", "deepgen_painting"),
            ),
        ],
        steps(("Load picture", ["picture"]), ("Edit", ["edit", "save"])),
        ["picture", "save"],
    ),
    complete(
        "deepgen_generate_then_edit",
        [
            generate("generate", 1, 0, "a red circle on the left on a white background"),
            save("save_generated", 2, 0, "generate", "deepgen_generated"),
            edit("edit", 3, 0, "generate", "Make it blue."),
            save("save_edited", 4, 0, "edit", "deepgen_edited"),
            *muted(
                generate(
                    "candle",
                    1,
                    ROW,
                    "A tall red candle in a brass holder beside an open window, four hours after it was lit.",
                ),
                save("save_candle", 2, ROW, "candle", "deepgen_candle"),
                edit(
                    "wind",
                    3,
                    ROW,
                    "candle",
                    "Draw what the candle looks like a moment after a strong gust of wind comes through the window.",
                ),
                save("save_wind", 4, ROW, "wind", "deepgen_wind"),
            ),
        ],
        steps(("Generate", ["generate", "save_generated"]), ("Edit", ["edit", "save_edited"])),
        ["save_generated", "save_edited"],
    ),
    complete(
        "deepgen_multi_step_edit",
        [
            generate("picture", 1, 0, "a yellow triangle at the top on a black background"),
            preview("see_picture", 1, BELOW, "picture"),
            edit("first", 2, 0, "picture", "Make it purple."),
            preview("see_first", 2, BELOW, "first"),
            edit("second", 3, 0, "first", "Move it to the bottom."),
            preview("see_second", 3, BELOW, "second"),
            edit("third", 4, 0, "second", "Change the background to white."),
            save("save", 4, BELOW, "third", "deepgen_third_edit", 440),
            *muted(
                load("drawing", 1, THIRD_ROW),
                edit("glasses", 2, THIRD_ROW, "drawing", "Put a pair of black sunglasses on the character."),
                edit("coat", 3, THIRD_ROW, "glasses", "Change the pink dress to a bright red winter coat."),
                edit(
                    "winter",
                    4,
                    THIRD_ROW,
                    "coat",
                    "Make it a winter evening: snow on the hill, a dark blue sky with stars and a moon.",
                ),
                save("save_winter", 5, THIRD_ROW, "winter", "deepgen_winter"),
            ),
        ],
        steps(
            ("Generate", ["picture", "see_picture"]),
            ("First edit", ["first", "see_first"]),
            ("Second edit", ["second", "see_second"]),
            ("Third edit", ["third", "save"]),
        ),
        ["see_picture", "see_first", "see_second", "save"],
    ),
    complete(
        "deepgen_multiple_references",
        [
            generate("picture", 1, 0, "a red star on the left on a white background"),
            preview("see_picture", 1, BELOW, "picture"),
            generate("ground", 2, 0, "a blue square on the right on a brown background"),
            preview("see_ground", 2, BELOW, "ground"),
            edit(
                "edit",
                3,
                0,
                "picture",
                "Put the star of the first picture on the background of the second picture.",
                image_2="ground",
                size_mode="width and height",
            ),
            save("save", 4, 0, "edit", "deepgen_combined"),
            *muted(
                load("drawing", 1, THIRD_ROW),
                generate(
                    "balloon", 2, THIRD_ROW, "a hot-air balloon with rainbow stripes, on a plain white background"
                ),
                edit(
                    "fly",
                    3,
                    THIRD_ROW,
                    "drawing",
                    "Put the hot-air balloon of the second picture into the sky of the first picture, above the hill. "
                    "Keep everything else.",
                    image_2="balloon",
                    size_mode="width and height",
                ),
                save("save_fly", 4, THIRD_ROW, "fly", "deepgen_balloon"),
            ),
        ],
        steps(
            ("First picture", ["picture", "see_picture"]),
            ("Second picture", ["ground", "see_ground"]),
            ("Edit with both", ["edit", "save"]),
        ),
        ["see_picture", "see_ground", "save"],
    ),
    complete(
        "deepgen_edit_under_mask",
        [
            generate("picture", 1, 0, "a red circle on the left and a blue square on the right on a white background"),
            preview("see_picture", 1, BELOW, "picture"),
            edit("edit", 2, 0, "picture", "Change the background to black.", size_mode="size of image"),
            preview("see_edit", 2, BELOW, "edit"),
            *mask_nodes(3, 0),
            composite("composite", 4.5, 0, "picture", "edit", "mask"),
            save("save", 4.5, 240, "composite", "deepgen_under_mask", 560),
            *muted(
                load("own", 1, THIRD_ROW),
                edit(
                    "coat",
                    2,
                    THIRD_ROW,
                    "own",
                    "Change the pink dress to a bright red winter coat.",
                    size_mode="size of image",
                ),
                composite("under", 3, THIRD_ROW, "own", "coat", "own:1"),
                save("save_under", 3.75, THIRD_ROW, "under", "deepgen_under_own_mask"),
            ),
        ],
        steps(
            ("Generate", ["picture", "see_picture"]),
            ("Edit", ["edit", "see_edit"]),
            ("Make a mask", ["nothing", "half", "soft", "mask"]),
            ("Keep what is outside", ["composite", "save"]),
        ),
        ["see_picture", "see_edit", "save"],
    ),
    complete(
        "deepgen_modular",
        [
            encode("encode", 1, 0, "a green circle on the right on a black background", 460),
            sample("sample", 2, 0, "encode"),
            decode("decode", 2, 500, "sample"),
            save("save", 2.75, 0, "decode", "deepgen_drawn", 460),
            Node("back", "VAEEncode", at(2, 720, 60, 300), links={"pixels": "decode", "vae": "loader:1"}),
            encode("encode_change", 1, 720, "an orange triangle", 460),
            sample("change", 2, 840, "encode_change", latent_image="back", denoise=0.5),
            decode("decode_change", 2, 1340, "change"),
            save("save_change", 2.75, 720, "decode_change", "deepgen_changed", 460),
            *muted(
                load("drawing", 3.85, 0),
                encode(
                    "encode_edit",
                    3.85,
                    460,
                    "Turn the drawing into a detailed watercolor painting.",
                    image="drawing",
                ),
                sample("sample_edit", 4.85, 0, "encode_edit"),
                decode("decode_edit", 4.85, 500, "sample_edit"),
                save("save_edit", 4.85, 640, "decode_edit", "deepgen_painting"),
            ),
        ],
        steps(
            ("Draw", ["encode", "sample", "decode", "save"]),
            ("Change a part of it", ["back", "encode_change", "change", "decode_change", "save_change"]),
        ),
        ["save", "save_change"],
    ),
]
