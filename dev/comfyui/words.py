"""The texts of nodes, in the form in which ComfyUI reads translations of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


PACK_MODULE = "custom_nodes.ComfyUI-DeepGen"


def texts_of(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """``nodeDefs`` of this pack in the language of the schemas, from /object_info."""
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                key: {"name": key, "tooltip": spec[1]["tooltip"]}
                for group in info["input"].values()
                for key, spec in group.items()
            },
            "outputs": {
                str(index): {"name": output, "tooltip": tooltip}
                for index, (output, tooltip) in enumerate(
                    zip(info["output_name"], info["output_tooltips"], strict=True)
                )
            },
        }
        for name, info in object_info.items()
        if info["python_module"] == PACK_MODULE
    }


def keys(texts: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The paths of all texts, such as ``DeepGenEdit.inputs.prompt.name``."""
    found = set()
    for key, value in texts.items():
        path = f"{prefix}{key}"
        found |= keys(value, f"{path}.") if isinstance(value, Mapping) else {path}
    return found
