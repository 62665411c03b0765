"""Pictures of the front end for the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from dev.workflows.canvas import fit_to_graph, picture_of
from dev.workflows.samples import MUTED, MUTED_GROUP


if TYPE_CHECKING:
    from dev.comfyui.browser import ComfyPage


LONG, SHOWN_AT = 400, 0.55

# Stay in the page until the node has done a part of its steps.
WATCH = """
node => {
    window.deepgenDone = 0;
    window.app.api.addEventListener("progress", event => {
        if (String(event.detail.node) === node) window.deepgenDone = event.detail.value / event.detail.max;
    });
}
"""


def without_muted(workflow: dict[str, Any]) -> dict[str, Any]:
    """What runs, large enough to be read."""
    nodes = [dict(node) for node in workflow["nodes"] if node["mode"] != MUTED]
    kept = {node["id"] for node in nodes}
    links = [link for link in workflow["links"] if {link[1], link[3]} <= kept]
    alive = {link[0] for link in links}
    for node in nodes:
        node["outputs"] = [
            {**output, "links": [link for link in output.get("links") or () if link in alive]}
            for output in node.get("outputs", ())
        ]
        if node["type"] == "MarkdownNote":
            node["size"] = [node["size"][0], 460]
    groups = [group for group in workflow["groups"] if group["title"] != MUTED_GROUP]
    return {**workflow, "nodes": nodes, "links": links, "groups": groups}


def finished(page: ComfyPage, workflow: dict[str, Any]) -> Image.Image:
    """After a run."""
    page.load_graph(without_muted(workflow))
    ended = page.queue_and_wait(timeout=300)
    if ended["status"]["status_str"] != "success":
        raise RuntimeError(f"the run failed: {ended}")
    page.page.wait_for_timeout(2000)
    return picture_of(page, fit_to_graph(page))


def on_its_way(page: ComfyPage, workflow: dict[str, Any]) -> Image.Image:
    """While the edit is drawn: its progress and its preview, beside the picture that is finished."""
    workflow = without_muted(workflow)
    (edit,) = [node for node in workflow["nodes"] if node["type"] == "DeepGenEdit"]
    page.load_graph(workflow)
    page.page.evaluate(
        "([id, steps]) => { window.app.graph.getNodeById(id).widgets.find(w => w.name === 'steps').value = steps; }",
        [edit["id"], LONG],
    )
    size = fit_to_graph(page)
    page.page.evaluate(WATCH, str(edit["id"]))
    page.page.evaluate("() => { window.app.queuePrompt(0, 1); }")
    page.page.wait_for_function(f"() => window.deepgenDone > {SHOWN_AT}", timeout=300_000, polling=20)
    return picture_of(page, size)


def template_browser(page: ComfyPage) -> Image.Image:
    """The template browser, opened at the samples of this pack."""
    page.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.page.get_by_text("ComfyUI-DeepGen").first.click()
    # The cards fade in, and have no state that says when all of them are there.
    page.page.wait_for_timeout(6000)
    return picture_of(page)
