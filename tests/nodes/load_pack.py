"""For the probes that run in ComfyUI's interpreter: the pack as ComfyUI imports it, under the name ``pack``."""

import importlib.util
import sys


def load_pack(folder: str) -> None:
    spec = importlib.util.spec_from_file_location("pack", f"{folder}/__init__.py", submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
