"""Images of the front end for the README."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from dev.workflows.canvas import draw, image_of_graph, image_of_window, run
from dev.workflows.samples import MUTED_GROUP, NOTE, SAMPLES, at


if TYPE_CHECKING:
    from dev.comfyui.browser import ComfyPage


SHOWN = "deepgen_generate_then_edit"
HEIGHT = 644
SIDE_BY_SIDE = ("generate", "save_generated", "edit", "save_edited")
"""On a page there is more room beside a node than below it."""
LONG, SHOWN_AT = 400, 0.55
"""Steps of the edit that is shown while it runs, and how many of them have been done then."""

# Stay in the page until the node has done a part of its steps.
WATCH = """
node => {
    window.deepgenDone = 0;
    window.app.api.addEventListener("progress", event => {
        if (String(event.detail.node) === node) window.deepgenDone = event.detail.value / event.detail.max;
    });
}
"""


def draw_shown(page: ComfyPage, edit_steps: int = 50) -> str:
    """What runs in generate-then-edit, large enough to be read; the id of its edit."""
    (sample,) = [sample for sample in SAMPLES if sample.name == SHOWN]
    nodes = {node.key: node for node in sample.nodes if not node.mode}
    nodes["note"] = replace(nodes["note"], box=at(0, NOTE, HEIGHT - NOTE))
    for column, key in enumerate(SIDE_BY_SIDE, start=1):
        nodes[key] = replace(nodes[key], box=at(column, 0, HEIGHT))
    nodes["edit"] = replace(nodes["edit"], inputs=nodes["edit"].inputs | {"steps": edit_steps})
    groups = {
        title: [nodes[node.key] for node in members]
        for title, members in sample.groups.items()
        if title != MUTED_GROUP
    }
    draw(page, [*nodes.values()], groups)
    return str([*nodes].index("edit") + 1)


def finished(page: ComfyPage) -> Image.Image:
    """Generate-then-edit after a run."""
    draw_shown(page)
    run(page)
    page.page.wait_for_timeout(2000)
    return image_of_graph(page)


def on_its_way(page: ComfyPage) -> Image.Image:
    """The same while the edit is drawn: its progress and its preview, next to the finished image."""
    edit = draw_shown(page, LONG)
    size = image_of_graph(page).size
    page.page.evaluate(WATCH, edit)
    page.page.evaluate("() => { window.app.queuePrompt(0, 1); }")
    page.page.wait_for_function(f"() => window.deepgenDone > {SHOWN_AT}", timeout=300_000, polling=20)
    return image_of_window(page).crop((0, 0, *size))


def template_browser(page: ComfyPage) -> Image.Image:
    """The template browser, opened at the samples of this pack."""
    page.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.page.get_by_text("ComfyUI-DeepGen").first.click()
    # The cards fade in, and have no state that says when all of them are there.
    page.page.wait_for_timeout(6000)
    return image_of_window(page)
