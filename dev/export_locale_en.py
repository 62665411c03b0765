"""Export ``locales/en`` from the nodes, and list what ``locales/zh`` lacks or has too many of.

    python -m dev.export_locale_en

Run it after changing a name, a description or a tooltip of a node. It needs a ComfyUI checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dev import ROOT
from dev.comfyui.checkouts import find_checkouts
from dev.comfyui.server import ComfyServer
from dev.comfyui.words import keys, texts_of


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a locale file as the front end has them."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Export and compare."""
    checkout = next((found for found in find_checkouts() if not found.problem), None)
    if checkout is None:
        raise SystemExit("No ComfyUI checkout can be run: see COMFYUI_PATH in the README.")
    with ComfyServer(checkout) as server:
        english = texts_of(server.get("/object_info").json())
    write_json(ROOT / "locales" / "en" / "nodeDefs.json", english)
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for title, names in (("missing", keys(english) - keys(chinese)), ("too many", keys(chinese) - keys(english))):
        for name in sorted(names):
            print(f"locales/zh: {title}: {name}")


if __name__ == "__main__":
    main()
