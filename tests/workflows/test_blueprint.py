"""The subgraph blueprint, from the node library of the front end to its images."""

from __future__ import annotations

import json
from pathlib import Path


NAME = "DeepGen Generate and Edit"
FILE = Path(__file__).parents[2] / "subgraphs" / f"{NAME}.json"
SINCE = (0, 3, 67)

SHOW_BOTH = """
() => {
    const {graph} = window.app, [node] = graph.nodes;
    for (const slot of [0, 1]) {
        const shown = window.LiteGraph.createNode("PreviewImage");
        graph.add(shown);
        node.connect(slot, shown, "images");
    }
    return [node.title, node.inputs.map(input => input.name), node.outputs.map(output => output.name),
        node.widgets.map(widget => widget.name)];
}
"""


def test_its_file_is_read_everywhere():
    # ComfyUI reads it in the encoding of the system.
    assert FILE.read_bytes().isascii()
    blueprint = json.loads(FILE.read_text(encoding="utf-8"))
    (outer,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert (outer["type"], subgraph["name"]) == (subgraph["id"], NAME)
    assert {node["properties"]["cnr_id"] for node in subgraph["nodes"]} == {"deepgen"}


def test_from_the_node_library_to_its_images(comfy, comfy_client, comfy_page):
    if comfy.checkout.version_tuple < SINCE:
        # Nothing to see, and no harm done.
        assert comfy.request("/global_subgraphs").status == 404
        return
    assert NAME in {entry["name"] for entry in comfy.get("/global_subgraphs").json().values()}
    comfy_page.page.evaluate("() => window.app.graph.clear()")
    comfy_page.add_from_library(NAME)
    title, inputs, outputs, widgets = comfy_page.page.evaluate(SHOW_BOTH)
    shown = ["prompt", "edit_prompt", "width", "height", "seed", "model"]
    assert (title, inputs, outputs, widgets) == (NAME, shown, ["generated", "edited"], shown)
    # Saved and opened again, as a part of the user's own workflow.
    comfy_page.load_graph(comfy_page.serialize())
    assert comfy_page.missing_nodes() == []

    prompt = comfy_page.graph_to_prompt()
    keys = {node["class_type"]: key for key, node in prompt.items()}
    assert set(keys) == {"DeepGenLoader", "DeepGenTextToImage", "DeepGenEdit", "PreviewImage"}
    generate, edit = (prompt[keys[name]]["inputs"] for name in ("DeepGenTextToImage", "DeepGenEdit"))
    assert edit["image"] == [keys["DeepGenTextToImage"], 0] and edit["pipeline"] == generate["pipeline"]
    assert (generate["prompt"], edit["prompt"]) == ("a red circle on the left on a white background", "Make it blue.")
    generate["steps"] = edit["steps"] = 1
    result = comfy_client.run(prompt, timeout=300)
    assert result.ok, result.error_text
    assert [image.size for image in result.images] == [(512, 512), (512, 512)]
    assert comfy_page.alerts() == [] and comfy_page.console_errors == [] and comfy_page.page_errors == []
