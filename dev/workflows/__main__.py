"""Make the sample workflows: ``workflows/*.json``, their thumbnails and their twins in ``tests/workflows``.

`samples` describes them. ComfyUI's own front end, in a headless Chromium, builds the graphs and writes both formats,
so what ships is what the front end would save. Each is then run with the demo model, and its images make the
thumbnail. Run it again after a node has changed:

    python -m dev.workflows
    python -m dev.workflows --screenshot FILE            # and an image of generate-then-edit after a run
    python -m dev.workflows --preview-screenshot FILE    # and one while it runs
    python -m dev.workflows --templates-screenshot FILE  # and the template browser

It needs what the tests of the workflows need: ComfyUI checkouts and Chromium. The samples are made with the oldest of
the checkouts, the subgraph blueprint and the image of the template browser with the newest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from dev import ROOT
from dev.comfyui.browser import Browser
from dev.comfyui.client import Client
from dev.comfyui.server import ComfyServer
from dev.workflows.blueprint import NAME as BLUEPRINT
from dev.workflows.blueprint import make_blueprint
from dev.workflows.canvas import build, open_canvas, runnable_checkouts
from dev.workflows.samples import SAMPLES, Sample
from dev.workflows.screenshots import finished, on_its_way, template_browser
from dev.workflows.thumbnails import thumbnail


WORKFLOWS, TWINS, BLUEPRINTS = ROOT / "workflows", ROOT / "tests" / "workflows", ROOT / "subgraphs"


def write_json(path: Path, content: dict[str, Any], ascii: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=ascii, indent=2) + "\n", encoding="utf-8")


def images(server: ComfyServer, sample: Sample, prompt: dict[str, Any]) -> list[Image.Image]:
    """Those that the thumbnail shows, from a run of the sample."""
    with Client(server) as client:
        result = client.run(prompt, timeout=600)
    if not result.ok:
        raise RuntimeError(f"{sample.name}: {result.error_text}")
    numbered = {node.key: (str(number), node) for number, node in enumerate(sample.nodes, start=1)}
    found = []
    for number, node in map(numbered.__getitem__, sample.thumbnail):
        if node.type == "LoadImage":
            found.append(Image.open(server.input / node.inputs["image"]))
        else:
            found += result.images_of(number)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample workflows, their thumbnails and their twins.")
    parser.add_argument("--screenshot", type=Path, help="image of generate-then-edit after a run")
    parser.add_argument("--preview-screenshot", type=Path, help="image of generate-then-edit while it runs")
    parser.add_argument("--templates-screenshot", type=Path, help="image of the template browser")
    arguments = parser.parse_args()
    checkouts = runnable_checkouts(parser)

    with ComfyServer(checkouts[0]) as server, Browser() as browser:
        for sample in SAMPLES:
            with open_canvas(browser, server) as page:
                workflow, prompt = build(page, sample)
            write_json(WORKFLOWS / f"{sample.name}.json", workflow)
            write_json(TWINS / f"{sample.name}.json", prompt)
            sheet = thumbnail(images(server, sample, prompt))
            sheet.save(WORKFLOWS / f"{sample.name}.jpg", quality=90, optimize=True)
            print(f"{sample.name}: {len(workflow['nodes'])} nodes, {len(prompt)} of them run", flush=True)
        for path, take in ((arguments.screenshot, finished), (arguments.preview_screenshot, on_its_way)):
            if path:
                with open_canvas(browser, server) as page:
                    take(page).save(path, quality=85, optimize=True)

    with ComfyServer(checkouts[-1]) as server, Browser() as browser:
        with open_canvas(browser, server) as page:
            write_json(BLUEPRINTS / f"{BLUEPRINT}.json", make_blueprint(page), ascii=True)
        if arguments.templates_screenshot:
            with browser.open(server, size=(1500, 1340)) as page:
                template_browser(page).save(arguments.templates_screenshot, quality=85, optimize=True)


if __name__ == "__main__":
    main()
