"""What newer versions of ComfyUI know, tried with a stand-in for their schema: the versions of the tests are older."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.mark.parametrize("known", [True, False])
def test_search_aliases_are_given_where_they_are_known(monkeypatch, known):
    fields = ["node_id", *(["search_aliases"] if known else [])]
    latest = ModuleType("comfy_api.latest")
    latest.__dict__["io"] = SimpleNamespace(Schema=dataclasses.make_dataclass("Schema", fields))
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    spec = importlib.util.spec_from_file_location("compat", Path(__file__).parents[2] / "nodes" / "compat.py")
    assert spec is not None and spec.loader is not None
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    assert compat.search_aliases("draw", "t2i") == ({"search_aliases": ["draw", "t2i"]} if known else {})
