"""Make the pictures of the help pages: ``web/docs/images/<node id>.jpg`` and, for the Chinese pages, ``.zh.jpg``.

Each is a screenshot of a graph in ComfyUI's own front end, in a headless Chromium, after it has run with the demo
model. Run it again after a node has changed:

    python -m dev.workflows.help_images
    python -m dev.workflows.help_images DeepGenEdit    # only that one

It needs what the tests of the workflows need: a ComfyUI checkout and Chromium. The newest checkout is taken, and the
Chinese of its front end.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dev.comfyui.browser import Browser, ComfyPage
from dev.comfyui.checkouts import find_checkouts
from dev.comfyui.server import ComfyServer, ServerOptions
from dev.workflows.canvas import HIDE_MENUS
from nodes.names import DEMO


ROOT = Path(__file__).resolve().parents[2]


TEXTS = json.loads(Path(__file__).with_name("help_image_texts.json").read_text(encoding="utf-8"))
PICTURES = ROOT / "web" / "docs" / "images"
# The help panel is about 400 pixels wide: what is drawn much wider than twice that cannot be read there.
WINDOW = (1300, 1000)
LARGEST_FILE = 60_000

SOURCE, MASKED = "picture.png", "picture_with_mask.png"


@dataclass
class Part:
    """A node of a picture.

    Attributes:
        box: x, y, width, height; a height of 0 is the node's own.
        links: Input: (key of the node that feeds it, its output).
    """

    key: str
    type: str
    box: tuple[int, int, int, int]
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)
    collapsed: bool = False


PIPELINE = {"pipeline": ("loader", 0)}
VAE = {"vae": ("loader", 1)}


def loader(x: int, y: int, width: int = 300, collapsed: bool = False) -> Part:
    return Part("loader", "DeepGenLoader", (x, y, width, 0), {"model": DEMO}, collapsed=collapsed)


def maker(key: str, node: str, box: tuple[int, int, int, int], collapsed: bool = False, **more: Any) -> Part:
    """A DeepGen node; what is a pair is a link, all else a widget."""
    links = {name: value for name, value in more.items() if isinstance(value, tuple)}
    widgets = {name: value for name, value in more.items() if name not in links}
    return Part(key, node, box, widgets, PIPELINE | links, collapsed)


def preview(key: str, x: int, y: int, side: int, of: str) -> Part:
    return Part(key, "PreviewImage", (x, y, side, side + 60), links={"images": (of, 0)})


def decode(key: str, x: int, y: int, of: str) -> Part:
    return Part(key, "VAEDecode", (x, y, 160, 0), links={"samples": (of, 0)} | VAE, collapsed=True)


def graphs(texts: dict[str, str]) -> dict[str, list[Part]]:
    return {
        "DeepGenLoader": [
            loader(0, 0),
            maker("make", "DeepGenTextToImage", (350, 0, 300, 370), prompt=texts["star"]),
            preview("see", 700, 0, 240, "make"),
        ],
        "DeepGenTextToImage": [
            loader(0, 0, collapsed=True),
            maker("make", "DeepGenTextToImage", (0, 70, 330, 420), prompt=texts["square"], batch_size=4),
            preview("see", 380, 70, 360, "make"),
        ],
        "DeepGenEdit": [
            loader(0, 0, 260, collapsed=True),
            Part("picture", "LoadImage", (0, 70, 260, 360), {"image": SOURCE}),
            maker("edit", "DeepGenEdit", (310, 0, 320, 520), prompt=texts["background"], image=("picture", 0)),
            preview("see", 680, 0, 260, "edit"),
        ],
        "DeepGenEncode": [
            loader(0, 0, collapsed=True),
            maker("encode", "DeepGenEncode", (0, 70, 320, 400), prompt=texts["triangle"]),
            maker("one", "DeepGenSample", (370, 0, 250, 0), conditioning=("encode", 0), seed=1),
            maker("other", "DeepGenSample", (370, 330, 250, 0), conditioning=("encode", 0), seed=7),
            decode("decode_one", 670, 0, "one"),
            decode("decode_other", 670, 330, "other"),
            preview("see_one", 670, 40, 170, "decode_one"),
            preview("see_other", 670, 370, 170, "decode_other"),
        ],
        "DeepGenSample": [
            loader(0, 0, 260, collapsed=True),
            Part("picture", "LoadImage", (0, 70, 260, 370), {"image": MASKED}),
            Part("latent", "VAEEncode", (310, 0, 160, 0), links={"pixels": ("picture", 0)} | VAE, collapsed=True),
            Part(
                "masked",
                "SetLatentNoiseMask",
                (310, 60, 220, 0),
                links={"samples": ("latent", 0), "mask": ("picture", 1)},
                collapsed=True,
            ),
            maker("encode", "DeepGenEncode", (310, 120, 220, 0), True, prompt=texts["both"]),
            maker(
                "sample",
                "DeepGenSample",
                (310, 200, 280, 0),
                conditioning=("encode", 0),
                latent_image=("masked", 0),
            ),
            decode("decode", 640, 0, "sample"),
            preview("see", 640, 70, 260, "decode"),
        ],
    }


FOCUS = "() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')"

BUILD = """
parts => {
    const {app, LiteGraph} = window;
    app.graph.clear();
    const made = {};
    for (const part of parts) {
        const node = made[part.key] = LiteGraph.createNode(part.type);
        app.graph.add(node);
        const [x, y, width, height] = part.box;
        node.pos = [x, y];
        node.setSize([width, height || node.computeSize()[1]]);
        for (const [name, value] of Object.entries({control_after_generate: "fixed", ...part.widgets})) {
            const widget = node.widgets?.find(w => w.name === name);
            if (widget) widget.value = value;
            else if (name in part.widgets) throw new Error(`${part.type} has no widget ${name}`);
        }
    }
    for (const part of parts)
        for (const [input, [from, slot]] of Object.entries(part.links))
            if (!made[from].connect(slot, made[part.key], input)) throw new Error(`${part.key}.${input}: no link`);
    for (const part of parts) if (part.collapsed) made[part.key].collapse(true);
}
"""

# At full size, where the menus of the corners do not reach.
SHOW = """
margin => {
    const {app} = window, boxes = app.graph._nodes.map(node => { node.updateArea(); return node.boundingRect; });
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const ds = app.canvas.ds;
    ds.scale = 1;
    ds.offset = [margin - left, 2 * margin - top];
    app.canvas.show_info = false;
    app.canvas.deselectAll?.();
    app.canvas.setDirty(true, true);
    return [
        Math.max(...boxes.map(b => b[0] + b[2])) - left + 2 * margin,
        Math.max(...boxes.map(b => b[1] + b[3])) - top + 3 * margin,
    ];
}
"""


def picture_of(page: ComfyPage, margin: int = 14) -> Image.Image:
    page.page.add_style_tag(content=HIDE_MENUS)
    # Nodes grow when their picture has arrived.
    page.page.wait_for_timeout(1500)
    width, height = page.page.evaluate(SHOW, margin)
    page.page.mouse.move(2, 2)
    page.page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    if width > shot.width or height > shot.height:
        raise RuntimeError(f"the graph is {width} x {height}, larger than the window")
    return shot.crop((0, 0, round(width), round(height)))


def run(page: ComfyPage, parts: list[Part]) -> dict[str, Any]:
    page.page.evaluate(BUILD, [vars(part) for part in parts])
    ended = page.queue_and_wait(timeout=300)
    if ended.get("status", {}).get("status_str") != "success":
        raise RuntimeError(f"the run failed: {ended}")
    return ended


def lay_out_pictures(server: ComfyServer, page: ComfyPage) -> None:
    """What the graphs load: a picture that the demo model drew, and the same with its right half masked."""
    parts = [loader(0, 0), maker("make", "DeepGenTextToImage", (0, 0, 300, 0), prompt=TEXTS["en"]["circle"])]
    ended = run(page, [*parts, Part("save", "SaveImage", (0, 0, 300, 0), links={"images": ("make", 0)})])
    (found,) = [image for output in ended["outputs"].values() for image in output["images"]]
    shutil.copy(server.output / found["filename"], server.input / SOURCE)
    picture = Image.open(server.input / SOURCE).convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    # Transparent is what LoadImage gives as mask.
    alpha.paste(0, (picture.width // 2, 0, picture.width, picture.height))
    picture.putalpha(alpha)
    picture.save(server.input / MASKED)


def save(shot: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(88, 40, -6):
        shot.save(path, quality=quality, optimize=True)
        if path.stat().st_size < LARGEST_FILE:
            return
    raise RuntimeError(f"{path.name} has {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the help pages.")
    parser.add_argument("nodes", nargs="*", help="node ids; without any, all")
    arguments = parser.parse_args()
    checkouts = [found for found in find_checkouts() if not found.problem]
    if not checkouts:
        parser.error("no ComfyUI checkout that can be run; see COMFYUI_PATH in the README")
    newest = max(checkouts, key=lambda checkout: checkout.version_tuple)
    # Live previews would stay in the nodes.
    options = ServerOptions(args=["--preview-method", "none"])
    with ComfyServer(newest, options) as server, Browser() as browser:
        with browser.open(server) as page:
            lay_out_pictures(server, page)
        for language, texts in TEXTS.items():
            for node, parts in graphs(texts).items():
                if arguments.nodes and node not in arguments.nodes:
                    continue
                with browser.open(server, {"Comfy.Locale": language}, size=WINDOW) as page:
                    # Focus mode: the canvas takes the whole window.
                    page.page.evaluate(FOCUS)
                    run(page, parts)
                    shot = picture_of(page)
                path = PICTURES / (f"{node}.jpg" if language == "en" else f"{node}.{language}.jpg")
                save(shot, path)
                print(f"{path.name}: {shot.width} x {shot.height}, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
