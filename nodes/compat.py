"""What newer versions of ComfyUI know and 0.3.64 does not."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io


def search_aliases(*words: str) -> dict[str, Any]:
    """For ``io.Schema``: words that find a node in the search, where ComfyUI has them (0.11 and later)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(words)} if "search_aliases" in known else {}
