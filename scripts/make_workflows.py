"""Make the sample workflows: ``workflows/*.json``, their thumbnails and their twins in ``tests/workflows``.

`workflow_samples` describes them. ComfyUI's own front end, in a headless Chromium, builds the graphs and writes both
formats, so what ships is what the front end would save. Run it again after a node has changed:

    python scripts/make_workflows.py
    python scripts/make_workflows.py --screenshot FILE    # and a picture of a run of generate-then-edit

It needs what the tests of the workflows need: a ComfyUI checkout and Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from comfyui_bench.browser import Browser, ComfyPage  # noqa: E402
from comfyui_bench.checkouts import find_checkouts  # noqa: E402
from comfyui_bench.server import ComfyServer, ServerOptions  # noqa: E402
from workflow_samples import SAMPLES, Sample  # noqa: E402

from deepgen_npu import __version__  # noqa: E402
from deepgen_npu.random_checkpoint import write  # noqa: E402


COLOR = "#3f789e"
OUR_VERSION, CORE_VERSION = __version__, "0.3.64"
WINDOW = (1800, 1000)
THUMBNAIL_WIDTH = 512

# What the screenshot shows: the same workflow with the demo model, which draws coloured shapes.
SCREENSHOT = {
    "DeepGenLoader": {"model": "coloured shapes (demo, not DeepGen 1.0)"},
    "DeepGenTextToImage": {"prompt": "a red circle on the left on a white background"},
    "DeepGenEdit": {"prompt": "change the background to black"},
}

SET_WIDGETS = """
changes => {
    for (const node of window.app.graph._nodes)
        for (const [name, value] of Object.entries(changes[node.type] ?? {}))
            node.widgets.find(widget => widget.name === name).value = value;
}
"""

BUILD = """
({nodes, groups}) => {
    const {app, LiteGraph} = window;
    app.graph.clear();
    const made = {};
    nodes.forEach((spec, index) => {
        const node = LiteGraph.createNode(spec.type);
        node.id = index + 1;
        app.graph.add(node);
        node.pos = spec.box.slice(0, 2);
        node.setSize(spec.box.slice(2));
        if (spec.title) node.title = spec.title;
        for (const [name, value] of Object.entries(spec.widgets)) {
            const widget = spec.type === "MarkdownNote" ? node.widgets[0] : node.widgets.find(w => w.name === name);
            if (!widget) throw new Error(`${spec.type} has no widget ${name}`);
            widget.value = value;
        }
        made[spec.key] = node;
    });
    for (const spec of nodes)
        for (const [input, from] of Object.entries(spec.links))
            if (!made[from].connect(0, made[spec.key], input)) throw new Error(`${spec.key}.${input}: no link`);
    for (const spec of groups) {
        const group = new LiteGraph.LGraphGroup(spec.title);
        group.pos = spec.box.slice(0, 2);
        group.size = spec.box.slice(2);
        group.color = spec.color;
        app.graph.add(group);
    }
}
"""

HIDE_MENUS = """
.side-tool-bar-container, .comfyui-body-top, .comfyui-body-bottom, .graph-canvas-menu, .p-buttongroup-vertical,
.selection-toolbox, .litegraph-minimap, .minimap-main-container, .comfy-menu-hamburger { display: none !important; }
"""

FIT = """
margin => {
    const {app} = window, boxes = app.graph._groups.map(g => [...g.pos, ...g.size])
        .concat(app.graph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]));
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const width = Math.max(...boxes.map(b => b[0] + b[2])) - left;
    const height = Math.max(...boxes.map(b => b[1] + b[3])) - top;
    const ds = app.canvas.ds;
    ds.scale = Math.min((innerWidth - 2 * margin) / width, (innerHeight - 2 * margin) / height);
    ds.offset[0] = margin / ds.scale - left;
    ds.offset[1] = margin / ds.scale - top;
    app.canvas.show_info = false;
    app.canvas.setDirty(true, true);
    return [width * ds.scale + 2 * margin, height * ds.scale + 2 * margin];
}
"""


def build(page: ComfyPage, sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    """The UI format and the API format of a sample, as the front end writes them."""
    boxes = {node.key: node.box for node in sample.nodes}
    groups = []
    for title, keys in sample.groups.items():
        left = min(boxes[key][0] for key in keys) - 10
        top = min(boxes[key][1] for key in keys) - 80
        right = max(boxes[key][0] + boxes[key][2] for key in keys) + 10
        bottom = max(boxes[key][1] + boxes[key][3] for key in keys) + 20
        groups.append({"title": title, "color": COLOR, "box": [left, top, right - left, bottom - top]})
    page.page.evaluate(BUILD, {"nodes": [vars(node) for node in sample.nodes], "groups": groups})
    workflow = tidy(sample.name, page.serialize())
    page.load_graph(workflow)
    # Once more: what a user gets who opens the file and saves it.
    workflow = tidy(sample.name, page.serialize())
    if complaints := page.alerts() + page.dialogs():
        raise RuntimeError(f"{sample.name}: the front end says {complaints}")
    return workflow, page.graph_to_prompt()


def tidy(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """Leave out what belongs to the session, and say where the nodes come from."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"deepgen/{name}"))
    workflow["extra"] = {}
    for node in workflow["nodes"]:
        node["pos"] = [round(value) for value in node["pos"]]
        size = node["size"]
        node["size"] = [round(value) for value in (size.values() if isinstance(size, dict) else size)]
        for slot in (*node.get("inputs", ()), *node.get("outputs", ())):
            slot.pop("localized_name", None)
        if node["type"] != "MarkdownNote":
            node["properties"]["Node name for S&R"] = node["type"]
            ours = node["type"].startswith("DeepGen")
            node["properties"]["cnr_id"] = "deepgen" if ours else "comfy-core"
            node["properties"]["ver"] = OUR_VERSION if ours else CORE_VERSION
    for group in workflow["groups"]:
        group["bounding"] = [round(value) for value in group["bounding"]]
    return workflow


def picture_of_graph(page: ComfyPage, margin: int = 30) -> Image.Image:
    """The canvas without menus and side bars, fitted to the graph."""
    page.page.add_style_tag(content=HIDE_MENUS)
    edges = page.page.evaluate(FIT, margin)
    page.page.mouse.move(2, 2)
    page.page.wait_for_timeout(1000)
    shot = Image.open(io.BytesIO(page.page.screenshot()))
    return shot.convert("RGB").crop((0, 0, min(shot.width, round(edges[0])), min(shot.height, round(edges[1]))))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample workflows, their thumbnails and their twins.")
    parser.add_argument("--screenshot", type=Path, help="picture of generate-then-edit after a run of the demo")
    arguments = parser.parse_args()
    checkout = next((found for found in find_checkouts() if not found.problem), None)
    if checkout is None:
        parser.error("no ComfyUI checkout that can be run; see COMFYUI_PATH in the README")

    def lay_out(base: Path) -> None:
        write(base / "models" / "deepgen" / "DeepGen-1.0-diffusers", size="tiny")

    with ComfyServer(checkout, ServerOptions(prepare=lay_out)) as server, Browser() as browser:
        for sample in SAMPLES:
            with browser.open(server, size=WINDOW) as page:
                # Focus mode: the canvas takes the whole window.
                page.page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
                workflow, prompt = build(page, sample)
                write_json(ROOT / "workflows" / f"{sample.name}.json", workflow)
                write_json(ROOT / "tests" / "workflows" / f"{sample.name}.json", prompt)
                shot = picture_of_graph(page)
                height = round(shot.height * THUMBNAIL_WIDTH / shot.width)
                shot.resize((THUMBNAIL_WIDTH, height), Image.Resampling.LANCZOS).save(
                    ROOT / "workflows" / f"{sample.name}.jpg", quality=85, optimize=True
                )
                print(f"{sample.name}: {len(workflow['nodes'])} nodes, {len(prompt)} of them run", flush=True)
                if arguments.screenshot and sample.name == "deepgen_generate_then_edit":
                    page.page.evaluate(SET_WIDGETS, SCREENSHOT)
                    ended = page.queue_and_wait(timeout=300)
                    if ended["status"]["status_str"] != "success":
                        raise RuntimeError(f"the run failed: {ended}")
                    page.page.wait_for_timeout(2000)
                    picture_of_graph(page).save(arguments.screenshot, quality=85, optimize=True)


if __name__ == "__main__":
    main()
