"""Modules of the pack as ComfyUI imports them: by path, since the names of our folders are also ComfyUI's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_module(name: str, path: Path, *folders: str) -> Any:
    """Import a file under a name of our choice; of a package, its ``folders``."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=list(folders) or None)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch() -> Any:
    """`dev.comfyui.launch`, whose ``enter`` makes this process one of ComfyUI."""
    path = Path(__file__).parents[2] / "dev" / "comfyui" / "launch.py"
    return sys.modules.get("launch") or load_module("launch", path)


def load_pack(folder: str) -> Any:
    """The pack as ComfyUI imports it, under the name ``pack``."""
    return load_module("pack", Path(folder) / "__init__.py", folder)


def pack_module(name: str) -> Any:
    """A module of this pack; outside of ComfyUI's interpreter one that imports nothing of ComfyUI."""
    if "pack" not in sys.modules:
        load_pack(str(Path(__file__).parents[2]))
    return importlib.import_module(f"pack.{name}")
