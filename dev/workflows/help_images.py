"""Make the images of the help pages: ``web/docs/images/<node id>.jpg`` and, for the Chinese pages, ``.zh.jpg``.

Each is a screenshot of a graph in ComfyUI's own front end, in a headless Chromium, after it has run with the demo
model. Run it again after a node has changed:

    python -m dev.workflows.help_images
    python -m dev.workflows.help_images DeepGenEdit    # only that one

It needs what the tests of the workflows need: a ComfyUI checkout and Chromium. The newest checkout is taken, and the
Chinese of its front end.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from dev import ROOT
from dev.comfyui.browser import Browser, ComfyPage
from dev.comfyui.server import ComfyServer, ServerOptions
from dev.workflows.canvas import draw, image_of_graph, open_canvas, run, runnable_checkouts
from dev.workflows.graph import (
    Box,
    Node,
    collapsed,
    crop_region,
    edit,
    encode,
    generate,
    guidance_every,
    ksampler,
    load,
    loader,
    lora,
    noise_mask,
    preview,
    put_back,
    sample,
    save,
    vae_decode,
    vae_encode,
)
from nodes.names import DEMO, RESTORE


TEXTS = json.loads(Path(__file__).with_name("help_image_texts.json").read_text(encoding="utf-8"))
IMAGES = ROOT / "web" / "docs" / "images"
WINDOW, MARGIN = (1300, 1000), 14
"""The help panel is about 400 pixels wide: what is drawn much wider than twice that cannot be read there."""
LARGEST_FILE = 60_000

LORA = "my_lora.safetensors"
SOURCE, MASKED, LARGE = "picture.png", "picture_with_mask.png", "large_picture_with_mask.png"
SIDE = 512
"""Of the first two; the last has twice that, and a mask around one shape of four."""


def demo(box: Box = (0, 0, 300, 0)) -> Node:
    return loader(box, DEMO)


def decoded(key: str, x: int, y: int, latent: str) -> Node:
    return collapsed(vae_decode(key, (x, y, 160, 0), latent))


def graphs(texts: dict[str, str]) -> dict[str, list[Node]]:
    """The graph of each node's help page."""
    return {
        "DeepGenLoader": [
            demo(),
            generate("make", (350, 0, 300, 370), texts["star"]),
            preview("see", (700, 0, 240, 300), "make"),
        ],
        "DeepGenTextToImage": [
            collapsed(demo()),
            generate("make", (0, 70, 330, 420), texts["square"], batch_size=4),
            preview("see", (380, 70, 360, 420), "make"),
        ],
        "DeepGenEdit": [
            collapsed(demo((0, 0, 260, 0))),
            load("image", (0, 70, 260, 360), SOURCE),
            edit("edit", (310, 0, 320, 520), "image", texts["background"]),
            preview("see", (680, 0, 260, 320), "edit"),
        ],
        "DeepGenEncode": [
            collapsed(demo()),
            encode("encode", (0, 70, 320, 400), texts["triangle"]),
            ksampler("one", (370, 0, 250, 0), "encode", seed=1),
            ksampler("other", (370, 330, 250, 0), "encode", seed=7),
            decoded("decode_one", 670, 0, "one"),
            decoded("decode_other", 670, 330, "other"),
            preview("see_one", (670, 40, 170, 230), "decode_one"),
            preview("see_other", (670, 370, 170, 230), "decode_other"),
        ],
        "DeepGenSample": [
            collapsed(demo((0, 0, 260, 0))),
            load("image", (0, 70, 260, 370), MASKED),
            collapsed(vae_encode("latent", (310, 0, 160, 0), "image")),
            collapsed(noise_mask("masked", (310, 60, 220, 0), "latent", ("image", 1))),
            collapsed(encode("encode", (310, 120, 220, 0), texts["both"])),
            sample("sample", (310, 200, 280, 0), "encode", latent_image=("masked", 0)),
            decoded("decode", 640, 0, "sample"),
            preview("see", (640, 70, 260, 320), "decode"),
        ],
        "DeepGenLoRA": [
            collapsed(demo()),
            lora("lora", (0, 70, 300, 0), lora_name=LORA),
            generate("make", (350, 0, 300, 370), texts["star"], pipeline=("lora", 0)),
            preview("see", (700, 0, 240, 300), "make"),
        ],
        "DeepGenGuidanceEvery": [
            collapsed(demo()),
            collapsed(encode("encode", (0, 60, 220, 0), texts["star"])),
            guidance_every("every", (0, 130, 300, 0)),
            ksampler("sample", (350, 0, 270, 0), "encode", model=("every", 0)),
            decoded("decode", 670, 0, "sample"),
            preview("see", (670, 60, 240, 300), "decode"),
        ],
        # Also that of DeepGen Put Back.
        "DeepGenCropRegion": [
            collapsed(demo((0, 0, 260, 0))),
            load("image", (0, 70, 260, 370), LARGE),
            crop_region("crop", (310, 0, 240, 0), "image", ("image", 1)),
            preview("see_crop", (310, 150, 240, 290), "crop"),
            collapsed(encode("encode", (600, 0, 220, 0), texts["blue"], image=("crop", 0), size_mode=RESTORE)),
            collapsed(vae_encode("latent", (600, 40, 160, 0), "crop")),
            collapsed(noise_mask("masked", (600, 80, 220, 0), "latent", ("crop", 1))),
            collapsed(ksampler("sample", (600, 120, 220, 0), "encode", "masked")),
            decoded("decode", 600, 160, "sample"),
            put_back("back", (600, 210, 260, 0), "crop", "decode"),
            preview("see", (600, 340, 260, 280), "back"),
        ],
    }


def lay_lora(base: Path) -> None:
    """A LoRA for the demo model that changes its images a little."""
    generator = torch.Generator().manual_seed(1)
    name, width = "transformer.transformer_blocks.0.attn.to_q", 160
    factors = {
        f"{name}.lora_{letter}.weight": torch.randn(shape, generator=generator) / 10
        for letter, shape in (("A", (4, width)), ("B", (width, 4)))
    }
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    save_file(factors, str(base / "models" / "loras" / LORA))


def make_sources(server: ComfyServer, page: ComfyPage) -> None:
    """What the graphs load: an image that the demo model drew, and the same with its right half masked."""
    box = (0, 0, 300, 0)
    draw(page, [demo(), generate("make", box, TEXTS["en"]["circle"]), save("save", box, "make", "ComfyUI")])
    (found,) = [image for output in run(page)["outputs"].values() for image in output["images"]]
    shutil.copy(server.output / found["filename"], server.input / SOURCE)
    image = Image.open(server.input / SOURCE).convert("RGBA")
    large = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
    for left in (0, SIDE):
        for top in (0, SIDE):
            large.paste(image, (left, top))
    # Transparent is what LoadImage gives as mask.
    for one, masked, file in (
        (image, (SIDE // 2, 0, SIDE, SIDE), MASKED),
        (large, (0, SIDE + SIDE // 4, SIDE // 2, 2 * SIDE - SIDE // 4), LARGE),
    ):
        alpha = Image.new("L", one.size, 255)
        alpha.paste(0, masked)
        one.putalpha(alpha)
        one.save(server.input / file)


def take(page: ComfyPage, nodes: list[Node]) -> Image.Image:
    """The graph after a run, at full size, where the menus of the corners do not reach."""
    draw(page, nodes)
    run(page)
    # Nodes grow when their image has arrived.
    page.page.wait_for_timeout(1500)
    return image_of_graph(page, MARGIN, 2 * MARGIN, scale=1)


def save_small(shot: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(88, 40, -6):
        shot.save(path, quality=quality, optimize=True)
        if path.stat().st_size < LARGEST_FILE:
            return
    raise RuntimeError(f"{path.name} has {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the images of the help pages.")
    parser.add_argument("nodes", nargs="*", help="node ids; without any, all")
    arguments = parser.parse_args()
    # Live previews would stay in the nodes.
    options = ServerOptions(args=["--preview-method", "none"], prepare=lay_lora)
    with ComfyServer(runnable_checkouts(parser)[-1], options) as server, Browser() as browser:
        with browser.open(server) as page:
            make_sources(server, page)
        for language, texts in TEXTS.items():
            for node, nodes in graphs(texts).items():
                if arguments.nodes and node not in arguments.nodes:
                    continue
                with open_canvas(browser, server, {"Comfy.Locale": language}, WINDOW) as page:
                    shot = take(page, nodes)
                path = IMAGES / (f"{node}.jpg" if language == "en" else f"{node}.{language}.jpg")
                save_small(shot, path)
                print(f"{path.name}: {shot.width} x {shot.height}, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
