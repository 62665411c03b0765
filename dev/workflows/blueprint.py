"""The subgraph blueprint: loader, generate and edit as one node of the node library."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from dev.workflows.canvas import draw, tidy_node
from dev.workflows.graph import edit, generate, loader
from dev.workflows.samples import at


if TYPE_CHECKING:
    from dev.comfyui.browser import ComfyPage


NAME = "DeepGen Generate and Edit"
DESCRIPTION = "Generates an image from a prompt with DeepGen 1.0, then edits it as a second prompt says."
NODES = [
    loader(),
    generate("generate", at(1, 0), "a red circle on the left on a white background"),
    edit("edit", at(2, 0), "generate", "Make it blue."),
]
# What the subgraph shows: (its name, node, widget of the node), and (its name, node).
WIDGETS = [
    ("prompt", "generate", "prompt"),
    ("edit_prompt", "edit", "prompt"),
    ("width", "generate", "width"),
    ("height", "generate", "height"),
    ("seed", "generate", "seed"),
    ("model", "loader", "model"),
]
OUTPUTS = [("generated", "generate"), ("edited", "edit")]

CONVERT = """
({ids, widgets, outputs, name}) => {
    const {app} = window, inner = id => subgraph.getNodeById(id);
    const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph._nodes));
    subgraph.name = node.title = name;
    // Newer front ends make an input of every seed.
    for (const input of [...subgraph.inputs]) subgraph.removeInput(input);
    for (const [label, key, widget] of widgets) {
        const target = inner(ids[key]), slot = target.inputs.find(input => input.widget?.name === widget);
        subgraph.addInput(label, String(slot.type)).connect(slot, target);
    }
    for (const [label, key] of outputs)
        subgraph.addOutput(label, "IMAGE").connect(inner(ids[key]).outputs[0], inner(ids[key]));
    node.pos = [0, 0];
    node.setSize([400, 460]);
    return JSON.parse(JSON.stringify(app.canvas._serializeItems([node])));
}
"""


def make_blueprint(page: ComfyPage) -> dict[str, Any]:
    """What the front end saves when a user publishes the subgraph."""
    draw(page, NODES)
    ids = {node.key: number for number, node in enumerate(NODES, start=1)}
    made = page.page.evaluate(CONVERT, {"ids": ids, "widgets": WIDGETS, "outputs": OUTPUTS, "name": NAME})
    (outer,), (subgraph,) = made["nodes"], made["subgraphs"]
    # Names that do not change from one run to the next.
    subgraph["id"] = outer["type"] = str(uuid.uuid5(uuid.NAMESPACE_URL, "deepgen/blueprint"))
    for slot in (*subgraph["inputs"], *subgraph["outputs"]):
        slot["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"deepgen/blueprint/{slot['name']}"))
    for node in subgraph["nodes"]:
        tidy_node(node)
    outer["id"] = 1
    # The front end also lists the seeds of the nodes inside, of which one is shown already.
    outer["properties"] = {"proxyWidgets": [["-1", name] for name, _, _ in WIDGETS]}
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": DESCRIPTION},
    }
