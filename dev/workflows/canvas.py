"""Build the graphs in ComfyUI's own front end, and take pictures of the canvas."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, Any

from PIL import Image

from deepgen_npu import __version__
from dev.workflows.samples import MUTED_GROUP, Node, Sample


if TYPE_CHECKING:
    from dev.comfyui.browser import ComfyPage


COLOR, MUTED_COLOR = "#3f789e", "#6b7075"
OUR_VERSION, CORE_VERSION = __version__, "0.3.64"

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
        node.mode = spec.mode;
        if (spec.title) node.title = spec.title;
        for (const [name, value] of Object.entries(spec.widgets)) {
            const widget = spec.type === "MarkdownNote" ? node.widgets[0] : node.widgets.find(w => w.name === name);
            if (!widget) throw new Error(`${spec.type} has no widget ${name}`);
            widget.value = value;
        }
        made[spec.key] = node;
    });
    for (const spec of nodes)
        for (const [input, from] of Object.entries(spec.links)) {
            const [key, slot] = from.split(":");
            if (!made[key].connect(Number(slot ?? 0), made[spec.key], input))
                throw new Error(`${spec.key}.${input}: no link`);
        }
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
    nodes = {node.key: node for node in sample.nodes}
    groups = [group(title, [nodes[key] for key in keys]) for title, keys in sample.groups.items()]
    page.page.evaluate(BUILD, {"nodes": [vars(node) for node in sample.nodes], "groups": groups})
    workflow = tidy(sample.name, page.serialize())
    page.load_graph(workflow)
    # Once more: what a user gets who opens the file and saves it.
    workflow = tidy(sample.name, page.serialize())
    if complaints := page.alerts() + page.dialogs():
        raise RuntimeError(f"{sample.name}: the front end says {complaints}")
    return workflow, page.graph_to_prompt()


def group(title: str, nodes: list[Node]) -> dict[str, Any]:
    left, top = (min(node.box[side] for node in nodes) for side in (0, 1))
    right, bottom = (max(node.box[side] + node.box[side + 2] for node in nodes) for side in (0, 1))
    color = MUTED_COLOR if title == MUTED_GROUP else COLOR
    return {"title": title, "color": color, "box": [left - 10, top - 80, right - left + 20, bottom - top + 100]}


def tidy(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """Leave out what belongs to the session, and say where the nodes come from."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"deepgen/{name}"))
    workflow["extra"] = {}
    for node in workflow["nodes"]:
        tidy_node(node)
    for frame in workflow["groups"]:
        frame["bounding"] = [round(value) for value in frame["bounding"]]
    return workflow


def tidy_node(node: dict[str, Any]) -> None:
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


def fit_to_graph(page: ComfyPage, margin: int = 30) -> tuple[int, int]:
    """Show the graph without menus and side bars; (width, height) of the part of the window that it takes."""
    page.page.add_style_tag(content=HIDE_MENUS)
    width, height = page.page.evaluate(FIT, margin)
    page.page.mouse.move(2, 2)
    page.page.wait_for_timeout(1000)
    return round(width), round(height)


def picture_of(page: ComfyPage, size: tuple[int, int] | None = None) -> Image.Image:
    shot = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    return shot.crop((0, 0, min(shot.width, size[0]), min(shot.height, size[1]))) if size else shot
