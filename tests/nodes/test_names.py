"""Texts that saved workflows contain: they are what they were in every release."""

from __future__ import annotations

import json
from pathlib import Path

from nodes import names


RELEASED = sorted((Path(__file__).parents[1] / "workflows" / "releases").rglob("api/*.json"))
PUBLISHED = "DeepGen-1.0-diffusers"


def test_they_never_change():
    assert {name: value for name, value in vars(names).items() if name.isupper()} == {
        "CATEGORY": "DeepGen",
        "FOLDER": "deepgen",
        "DEMO": "coloured shapes (demo, not DeepGen 1.0)",
        "EITHER": "DeepGen 1.0 if downloaded, else the demo",
        "PADDED": "follow image, no distortion",
        "FOLLOW": "follow image",
        "CUSTOM": "width and height",
        "RESTORE": "size of image",
    }


def test_workflows_of_every_release_use_only_these():
    assert RELEASED
    for path in RELEASED:
        given = [node["inputs"] for node in json.loads(path.read_text(encoding="utf-8")).values()]
        models = {inputs["model"] for inputs in given if "model" in inputs}
        assert models and models <= {names.DEMO, names.EITHER, PUBLISHED}, path
        modes = {inputs["size_mode"] for inputs in given if "size_mode" in inputs}
        assert modes <= {names.PADDED, names.FOLLOW, names.CUSTOM, names.RESTORE}, path
