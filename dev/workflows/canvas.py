"""Build graphs in ComfyUI's own front end, run them, and take images of the canvas."""

from __future__ import annotations

import io
import uuid
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from PIL import Image

from deepgen_npu import __version__
from dev.comfyui.browser import Browser, ComfyPage
from dev.comfyui.checkouts import Checkout, find_checkouts
from dev.comfyui.server import ComfyServer
from dev.workflows.graph import TITLE, Node, occupied
from dev.workflows.samples import MUTED_GROUP, Sample
from dev.workflows.wires import routes


COLOR, MUTED_COLOR = "#3f789e", "#6b7075"
HEAD, HEAD_OF_SHELF, FOOT = 58, 36, 18
"""Of a group, above the titles of its nodes, less where nothing but titles is seen; and below its nodes."""
OUR_VERSION, CORE_VERSION = __version__, "0.3.64"

BUILD = """
({nodes, groups, turns}) => {
    const {app, LiteGraph} = window;
    app.graph.clear();
    const made = {};
    nodes.forEach((spec, index) => {
        const node = made[spec.key] = LiteGraph.createNode(spec.type);
        node.id = index + 1;
        app.graph.add(node);
        const [x, y, width, height] = spec.box;
        node.pos = [x, y];
        node.setSize([width, height || node.computeSize()[1]]);
        node.mode = spec.mode;
        if (spec.title) node.title = spec.title;
        for (const [name, value] of Object.entries({control_after_generate: "fixed", ...spec.inputs})) {
            if (Array.isArray(value)) continue;
            const widget = node.widgets?.find(w => w.name === name);
            if (widget) widget.value = value;
            else if (name in spec.inputs) throw new Error(`${spec.type} has no widget ${name}`);
        }
    });
    const turned = {};
    for (const spec of nodes)
        for (const [input, value] of Object.entries(spec.inputs)) {
            if (!Array.isArray(value)) continue;
            // Wires from one output share the turns with which they begin.
            const points = turns[`${spec.key} ${input}`] ?? [];
            const path = count => JSON.stringify([value, points.slice(0, count)]);
            let shared = points.length;
            while (shared && !(path(shared) in turned)) shared -= 1;
            const link = made[value[0]].connect(value[1], made[spec.key], input, turned[path(shared)]);
            if (!link) throw new Error(`${spec.key}.${input}: no link`);
            for (let count = shared; count < points.length; count++)
                turned[path(count + 1)] = app.graph.createReroute(points[count], link).id;
        }
    for (const spec of nodes) if (spec.collapsed) made[spec.key].collapse(true);
    for (const spec of groups) {
        const group = new LiteGraph.LGraphGroup(spec.title);
        group.pos = spec.box.slice(0, 2);
        group.size = spec.box.slice(2);
        group.color = spec.color;
        group.font_size = spec.font_size;
        app.graph.add(group);
    }
}
"""

HIDE_MENUS = """
.side-tool-bar-container, .comfyui-body-top, .comfyui-body-bottom, .graph-canvas-menu, .p-buttongroup-vertical,
.selection-toolbox, .litegraph-minimap, .minimap-main-container, .comfy-menu-hamburger { display: none !important; }
"""

FIT = """
([margin, top, scale]) => {
    const {app} = window, nodes = app.graph._nodes.map(node => { node.updateArea(); return node.boundingRect; });
    const boxes = app.graph._groups.map(g => [...g.pos, ...g.size]).concat(nodes);
    const x = Math.min(...boxes.map(b => b[0])), width = Math.max(...boxes.map(b => b[0] + b[2])) - x;
    const y = Math.min(...boxes.map(b => b[1])), height = Math.max(...boxes.map(b => b[1] + b[3])) - y;
    const ds = app.canvas.ds;
    ds.scale = scale || Math.min((innerWidth - 2 * margin) / width, (innerHeight - top - margin) / height);
    ds.offset[0] = margin / ds.scale - x;
    ds.offset[1] = top / ds.scale - y;
    app.canvas.show_info = false;
    app.canvas.deselectAll?.();
    app.canvas.setDirty(true, true);
    return [width * ds.scale + 2 * margin, height * ds.scale + top + margin];
}
"""


def runnable_checkouts(parser: ArgumentParser) -> list[Checkout]:
    """The ComfyUI checkouts that can be run, from the oldest to the newest."""
    found = [checkout for checkout in find_checkouts() if not checkout.problem]
    if not found:
        parser.error("no ComfyUI checkout that can be run; see COMFYUI_PATH in the README")
    return sorted(found, key=lambda checkout: checkout.version_tuple)


def open_canvas(
    browser: Browser,
    server: ComfyServer,
    settings: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (1800, 1000),
) -> ComfyPage:
    """The front end in focus mode: the canvas takes the window."""
    page = browser.open(server, settings, size)
    page.page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    return page


def draw(page: ComfyPage, nodes: list[Node], groups: dict[str, list[Node]] | None = None) -> None:
    """Build a graph on the canvas, replacing what is there. Node ids count from 1, in the order of ``nodes``.

    With groups, wires run around nodes.
    """
    frames, turns = [frame(title, members) for title, members in (groups or {}).items()], {}
    if frames:
        titles = [(*one["box"][:3], TITLE) for one in frames]
        turns = {" ".join(wire): points for wire, points in routes(nodes, titles).items()}
    page.page.evaluate(BUILD, {"nodes": [vars(node) for node in nodes], "groups": frames, "turns": turns})


def run(page: ComfyPage) -> dict[str, Any]:
    """Run the graph on the canvas; its history entry."""
    ended = page.queue_and_wait(timeout=300)
    if ended.get("status", {}).get("status_str") != "success":
        raise RuntimeError(f"the run failed: {ended}")
    return ended


def build(page: ComfyPage, sample: Sample) -> tuple[dict[str, Any], dict[str, Any]]:
    """The UI format and the API format of a sample, as the front end writes them."""
    draw(page, sample.nodes, sample.groups)
    workflow = tidy(sample.name, page.serialize())
    page.load_graph(workflow)
    # Once more: what a user gets who opens the file and saves it.
    workflow = tidy(sample.name, page.serialize())
    if complaints := page.alerts() + page.dialogs():
        raise RuntimeError(f"{sample.name}: the front end says {complaints}")
    return workflow, page.graph_to_prompt()


def frame(title: str, nodes: list[Node]) -> dict[str, Any]:
    """A group around nodes, with room for its title and for wires below that."""
    boxes = [occupied(node) for node in nodes]
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    head = HEAD_OF_SHELF if all(node.collapsed for node in nodes) else HEAD
    box = (left - 10, top - head, right - left + 20, bottom - top + head + FOOT)
    return {"title": title, "color": MUTED_COLOR if title == MUTED_GROUP else COLOR, "box": box, "font_size": 20}


def tidy(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """Leave out what belongs to the session, and say where the nodes come from."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"deepgen/{name}"))
    # Where wires turn is a part of the graph.
    workflow["extra"] = {
        key: workflow["extra"][key] for key in ("linkExtensions", "reroutes") if key in workflow["extra"]
    }
    for node in workflow["nodes"]:
        tidy_node(node)
    for group in workflow["groups"]:
        group["bounding"] = [round(value) for value in group["bounding"]]
    return workflow


def tidy_node(node: dict[str, Any]) -> None:
    node["pos"] = [round(value) for value in node["pos"]]
    size = node["size"]
    node["size"] = [round(value) for value in (size.values() if isinstance(size, dict) else size)]
    for slot in (*node.get("inputs", ()), *node.get("outputs", ())):
        slot.pop("localized_name", None)
    if node["type"] != "MarkdownNote":
        ours = node["type"].startswith("DeepGen")
        node["properties"] |= {
            "Node name for S&R": node["type"],
            "cnr_id": "deepgen" if ours else "comfy-core",
            "ver": OUR_VERSION if ours else CORE_VERSION,
        }


def image_of_graph(page: ComfyPage, margin: int = 30, top: int | None = None, scale: float = 0) -> Image.Image:
    """The graph without menus and side bars.

    Args:
        top: The margin above, ``margin`` by default.
        scale: Of the graph; 0 fits it to the window.
    """
    page.page.add_style_tag(content=HIDE_MENUS)
    width, height = (round(side) for side in page.page.evaluate(FIT, [margin, top or margin, scale]))
    page.page.mouse.move(2, 2)
    page.page.wait_for_timeout(1000)
    shot = image_of_window(page)
    if width > shot.width + 1 or height > shot.height + 1:
        raise RuntimeError(f"the graph is {width} x {height}, larger than the window")
    return shot.crop((0, 0, min(width, shot.width), min(height, shot.height)))


def image_of_window(page: ComfyPage) -> Image.Image:
    return Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
