"""Drive ComfyUI's own front end in a headless Chromium."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Route, sync_playwright

from .server import ComfyServer


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Not as soon as there is a graph: at the end of its start the front end replaces that by a workflow of its own.
READY = """() => {
    const manager = window.app?.extensionManager;
    return manager?.workflow?.activeWorkflow && !manager.spinner;
}"""
OPTIONAL_FILE = re.compile(r"/user\.css$|/userdata(/|$)")
# Said at every start by the front ends since 1.49, whatever packs there are.
OF_THE_FRONT_END = ("ComfyApp graph accessed before initialization",)
LIBRARY_SEARCH = re.compile(r"^Search( Nodes)?\W*$")
LIBRARY_ENTRIES_BEFORE_1_49 = ".node-lib-node-container"
LIBRARY_ENTRIES = f"{LIBRARY_ENTRIES_BEFORE_1_49}, [data-reka-collection-item][role=treeitem]"
DIALOGS = "[role=dialog], [role=alertdialog], .p-dialog"


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


class Browser:
    """One browser process; `open` gives a session of its own for each page."""

    def __enter__(self) -> Browser:
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=chromium_path(), headless=True, args=list(CHROMIUM_ARGS)
            )
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def open(
        self,
        server: ComfyServer,
        settings: Mapping[str, Any] | None = None,
        size: tuple[int, int] = (1600, 1000),
    ) -> ComfyPage:
        """Open the front end with settings such as {"Comfy.Locale": "zh"}.

        All settings are put back when the page closes.
        """
        stored = server.settings_path.read_text(encoding="utf-8")
        if settings:
            server.post("/settings", dict(settings))
        context = self._browser.new_context(viewport={"width": size[0], "height": size[1]})
        page = ComfyPage(context.new_page(), server, stored)
        try:
            page.load()
        except BaseException:
            page.close()
            raise
        return page


class ComfyPage:
    """The front end in one browser session.

    `console_errors` and `page_errors` grow with what the page reports; requests to other hosts
    are refused and listed in `refused`, never reported as errors. Nor are the optional files
    that a fresh user does not have, and what the front end says of itself at every start.
    """

    def __init__(self, page: Page, server: ComfyServer, stored_settings: str) -> None:
        self.page = page
        self.server = server
        self._stored_settings = stored_settings
        self.console_errors: list[str] = []
        self.page_errors: list[str] = []
        self.refused: list[str] = []
        page.on("console", self._take_console)
        page.on("pageerror", lambda error: self.page_errors.append(error.stack or str(error)))
        page.route("**/*", self._filter)

    def __enter__(self) -> ComfyPage:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.page.context.close()
        self.server.settings_path.write_text(self._stored_settings, encoding="utf-8")

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url).netloc in ("", urlsplit(self.server.url).netloc)

    def _filter(self, route: Route) -> None:
        url = route.request.url
        if self._is_ours(url):
            route.continue_()
        else:
            self.refused.append(url)
            route.abort()

    def _take_console(self, message: ConsoleMessage) -> None:
        url = message.location.get("url", "")
        if message.type != "error" or not self._is_ours(url):
            return
        if any(known in message.text for known in OF_THE_FRONT_END):
            return
        if "Content Security Policy" in message.text:
            self.refused.append(message.text)
        elif not (OPTIONAL_FILE.search(urlsplit(url).path) and "404" in message.text):
            self.console_errors.append(f"{message.text} ({url})")

    def load(self, timeout: float = 60.0) -> None:
        """(Re)load the page and wait until the front end can take a workflow."""
        self.page.goto(self.server.url, timeout=timeout * 1000)
        self.page.wait_for_function(READY, timeout=timeout * 1000)

    def load_graph(self, workflow: Mapping[str, Any]) -> None:
        """Load a workflow in UI format, replacing what is on the canvas."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", dict(workflow))

    def open_template(self, pack: str, name: str) -> None:
        """Open a sample workflow of a pack in the template browser, as a user does."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(pack, exact=True).first.click()
        card = self.page.locator(f"[data-testid=template-workflow-{name}]")
        card.scroll_into_view_if_needed()  # its thumbnail is loaded when it is in view
        card.locator("img").first.wait_for()
        card.click()
        card.wait_for(state="detached")

    def add_from_library(self, name: str) -> None:
        """Put a node on the canvas that is found in the side bar's node library."""
        self.page.evaluate(
            "() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')"
        )
        self.page.get_by_placeholder(LIBRARY_SEARCH).locator("visible=true").fill(name)
        entry = self.page.locator(LIBRARY_ENTRIES).get_by_text(name).first
        entry.wait_for()
        follows_the_pointer = self.page.locator(LIBRARY_ENTRIES_BEFORE_1_49).count() == 0
        entry.click()
        if follows_the_pointer:
            size = self.page.viewport_size
            assert size is not None
            self.page.mouse.click(size["width"] / 2, size["height"] / 2)
        self.page.wait_for_function("() => window.app.graph.nodes.length > 0")

    def drop_file(self, path: Path, mime: str = "image/png") -> None:
        """Give the front end a file as if it had been dropped on the canvas."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.page.evaluate(
            """async ([name, mime, data]) => {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                await window.app.handleFile(new File([bytes], name, {type: mime}));
            }""",
            [path.name, mime, data],
        )

    def graph_to_prompt(self) -> dict[str, Any]:
        """The graph on the canvas in API format."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def serialize(self) -> dict[str, Any]:
        """The graph on the canvas in UI format."""
        # As JSON: handed over as an object, undefined entries would come out as null, which the schema refuses.
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))

    def queue_and_wait(self, timeout: float = 120.0) -> dict[str, Any]:
        """Queue the graph as the Run button does; returns the history entry of the prompt.

        A prompt that the server rejects is returned as {"rejected": its error message}.
        """

        def is_queue(response: Any) -> bool:
            request = response.request
            return request.method == "POST" and urlsplit(request.url).path.endswith("/prompt")

        with self.page.expect_response(is_queue, timeout=timeout * 1000) as caught:
            self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        answer = caught.value.json()
        if "prompt_id" not in answer:
            return {"rejected": answer}
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.server.get(f"/history/{answer['prompt_id']}").json()
            if answer["prompt_id"] in history:
                return history[answer["prompt_id"]]
            self.server.check_alive()
            # Lets the page handle its own events, which a plain sleep would hold up.
            self.page.wait_for_timeout(100)
        raise TimeoutError(f"the prompt did not end\n{self.server.log_tail()}")

    def missing_nodes(self) -> list[str]:
        """Types on the canvas that the server does not offer, subgraphs included."""
        return self.page.evaluate(
            """() => {
                const types = new Set();
                const visit = graph => graph.nodes.forEach(node =>
                    node.subgraph ? visit(node.subgraph) : types.add(node.type));
                visit(window.app.graph);
                const known = window.LiteGraph.registered_node_types;
                return [...types].filter(type => !(type in known)).sort();
            }"""
        )

    def dialogs(self) -> list[str]:
        """Texts of the dialogs in view, such as the one about missing nodes."""
        found = self.page.locator(DIALOGS)
        return [item.inner_text() for item in found.all() if item.is_visible()]

    def alerts(self) -> list[str]:
        """Texts of the messages that pop up at the edge, such as the one about an invalid workflow."""
        self.page.wait_for_timeout(300)
        return [item.inner_text() for item in self.page.locator(".p-toast-message").all()]

    def close_dialogs(self) -> None:
        for _ in range(5):
            if not self.dialogs():
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(300)

    def fit_view(self) -> None:
        """Show the whole graph, e.g. before a screenshot."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(500)

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))
        return path
