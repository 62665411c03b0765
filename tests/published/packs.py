"""Packs by other authors that ours is tested with; none of their code is here."""

from __future__ import annotations

import os
from pathlib import Path


NEIGHBOUR = Path(__file__).resolve().parents[1] / "data" / "neighbour_pack"
VARIABLE = "COMFYUI_OTHER_PACKS"
# github.com/Comfy-Org/ComfyUI-Manager and github.com/kijai/ComfyUI-Marigold, which uses diffusers.
DEFAULT_PACKS = ("~/comfy/ComfyUI-Manager", "~/comfy/ComfyUI-Marigold")
MODEL = "somebody/reference"


def named_packs() -> list[Path]:
    named = os.environ.get(VARIABLE, "")
    return [Path(p.strip()).expanduser() for p in (named.split(os.pathsep) if named else DEFAULT_PACKS) if p.strip()]


def missing_packs() -> list[str]:
    return [path.name for path in named_packs() if not (path / "__init__.py").is_file()]


def scanner() -> Path | None:
    """ComfyUI-Manager's, which makes the list of all packs' nodes."""
    return next((path / "scanner.py" for path in named_packs() if (path / "scanner.py").is_file()), None)
