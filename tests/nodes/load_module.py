"""For what runs in ComfyUI's interpreter, where the names of our folders are ComfyUI's: a module by its path."""

from __future__ import annotations

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


def finder() -> Any:
    """What lets ComfyUI's own imports of torchvision and torchaudio pass where these do not load."""
    return load_module("launch", Path(__file__).parents[2] / "dev" / "comfyui" / "launch.py").finder


def load_pack(folder: str) -> Any:
    """The pack as ComfyUI imports it, under the name ``pack``."""
    return load_module("pack", Path(folder) / "__init__.py", folder)
