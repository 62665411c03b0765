"""Make ``locales/en`` from the nodes themselves, and list where ``locales/zh`` is out of step.

    python -m dev.export_locale_en

Run it after a name, a description or a tooltip of a node has changed. It needs a ComfyUI checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dev.comfyui.checkouts import find_checkouts
from dev.comfyui.server import ComfyServer
from dev.comfyui.words import keys, texts_of


ROOT = Path(__file__).resolve().parents[1]


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    checkout = next((found for found in find_checkouts() if not found.problem), None)
    if checkout is None:
        raise SystemExit("no ComfyUI checkout that can be run; see COMFYUI_PATH in the README")
    with ComfyServer(checkout) as server:
        english = texts_of(server.get("/object_info").json())
    write_json(ROOT / "locales" / "en" / "nodeDefs.json", english)
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    for title, names in (("missing", keys(english) - keys(chinese)), ("too many", keys(chinese) - keys(english))):
        for name in sorted(names):
            print(f"locales/zh: {title}: {name}")


if __name__ == "__main__":
    main()
