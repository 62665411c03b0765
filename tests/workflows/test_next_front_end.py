"""The sample workflows in a front end newer than that of any checkout, in both of its ways to draw nodes."""

from __future__ import annotations

from itertools import combinations

import pytest
from comfyui_fixtures import CHECKOUTS, unavailable
from workflows.test_layout import LAPTOP, READABLE, overlap
from workflows.test_workflows import NAMES, PACK, RELEASES, calls, read, twin, ui

from dev.comfyui.checkouts import NEXT_FRONT_END, NEXT_FRONT_END_FILES
from dev.comfyui.server import ComfyServer, ServerOptions


@pytest.fixture(scope="module")
def server():
    runnable = [checkout for checkout in CHECKOUTS if checkout and not checkout.problem]
    if not runnable:
        unavailable(f"the samples in front end {NEXT_FRONT_END}; no ComfyUI was found that runs")
    if not NEXT_FRONT_END_FILES.is_dir():
        unavailable(f"the samples in front end {NEXT_FRONT_END}; `make comfyui-environments` installs it")
    newest = max(runnable, key=lambda checkout: checkout.version_tuple)
    with ComfyServer(newest, ServerOptions(args=["--front-end-root", str(NEXT_FRONT_END_FILES)])) as server:
        yield server


RENDERERS = pytest.mark.parametrize("vue_nodes", [True, False], ids=["vue", "classic"])

DRAWN = """
() => {
    const {canvas, graph} = window.app, {scale, offset} = canvas.ds;
    const elements = new Map([...document.querySelectorAll("[data-node-id]")].map(e => [e.dataset.nodeId, e]));
    return [scale, graph.nodes.map(node => {
        const element = elements.get(String(node.id));
        if (!element) return [...node.boundingRect];
        const {left, top, width, height} = element.getBoundingClientRect();
        return [left / scale - offset[0], top / scale - offset[1], width / scale, height / scale];
    })];
}
"""


@RENDERERS
def test_every_sample_goes_round(server, comfy_browser, vue_nodes):
    with comfy_browser.open(server, {"Comfy.VueNodes.Enabled": vue_nodes}) as page:
        for name in NAMES:
            page.load_graph(ui(name))
            assert page.missing_nodes() == [] and page.dialogs() == [], name
            assert calls(page.graph_to_prompt()) == calls(twin(name)), name
            page.load_graph(page.serialize())
            assert calls(page.graph_to_prompt()) == calls(twin(name)), name
        drawn = page.page.locator("[data-node-id]").count()
        assert (drawn > 0) == vue_nodes
        assert page.alerts() == [] and page.console_errors == [] and page.page_errors == []


@RENDERERS
def test_older_workflows_mean_the_same(server, comfy_browser, vue_nodes):
    with comfy_browser.open(server, {"Comfy.VueNodes.Enabled": vue_nodes}) as page:
        for path in RELEASES:
            page.load_graph(read(path))
            assert page.missing_nodes() == [] and page.dialogs() == [], path
            now, kept = page.graph_to_prompt(), read(path.parents[1] / "api" / path.name)
            assert {key: node["class_type"] for key, node in now.items()} == {
                key: node["class_type"] for key, node in kept.items()
            }, path
            for key, node in kept.items():
                assert node["inputs"].items() <= now[key]["inputs"].items(), (path, key)
        assert page.alerts() == [] and page.console_errors == [] and page.page_errors == []


@RENDERERS
def test_every_sample_can_be_read(server, comfy_browser, vue_nodes):
    """On a laptop, as it is opened from the template browser."""
    with comfy_browser.open(server, {"Comfy.VueNodes.Enabled": vue_nodes}, LAPTOP) as page:
        for name in NAMES:
            page.open_template(PACK, name)
            page.page.wait_for_timeout(1000)  # nodes grow to the size of what is in them
            scale, boxes = page.page.evaluate(DRAWN)
            assert len(boxes) == len(ui(name)["nodes"])
            assert scale >= READABLE, name
            assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)], name
