"""The sample workflows in a front end newer than that of any checkout, in both of its ways to draw nodes."""

from __future__ import annotations

import pytest
from comfyui_fixtures import CHECKOUTS, unavailable
from workflows.test_workflows import NAMES, calls, twin, ui

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


@pytest.mark.parametrize("vue_nodes", [True, False], ids=["vue", "classic"])
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
