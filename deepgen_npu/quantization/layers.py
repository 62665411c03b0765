"""Which layers are quantised, and why the others are not. Nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .formats import LayerFormat, format_for


PARTS = ("vlm", "connector", "transformer")
"""The parts that have layers to quantise. The VAE is small, and its convolutions are no matrices."""

_LEFT: dict[str, tuple[tuple[str, str], ...]] = {
    "transformer": (
        (r"(^|\.)norm\w*\.linear$", "modulation: its error reaches every token of every step"),
        (r"^time_text_embed\.", "embedding of time and text: part of every modulation"),
        (r"^(pos_embed\.proj|context_embedder|proj_out)$", "first or last layer"),
    ),
    "vlm": (
        (r"\.visual\.blocks\.\d+\.mlp\.down_proj$", "3420 columns as published: no group of 16 or more divides them"),
        (r"\.visual\.patch_embed\.proj$", "first layer"),
        (r"\.embed_tokens$", "embedding: looked up, not multiplied"),
    ),
    "connector": ((r"\.mlp\.fc2$", "11946 columns as published: no power of 4 divides them"),),
}
"""For each part: a pattern of module names, and the reason for which such a layer is left as it is."""


def plan(
    part: str, title: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, LayerFormat], dict[str, list[str]]]:
    """Which layers of a part are quantised, and which are not.

    Args:
        part: One of `PARTS`.
        title: One of `formats.FORMATS`.
        shapes: Of the part's tensors, by their names in the model.

    Returns:
        The format of each layer that is quantised, by module name; and the names of the other layers, by the reason
        for which they stay. Vectors (norms, biases) are in neither.
    """
    chosen: dict[str, LayerFormat] = {}
    left: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(shape) < 2:
            continue
        reason = next((reason for pattern, reason in _LEFT[part] if re.search(pattern, module)), None)
        layer = format_for(title, shape[1]) if reason is None else None
        if layer is None:
            left.setdefault(reason or "no power of 4 divides the number of columns", []).append(module)
        else:
            chosen[module] = layer
    return chosen, left


def summarise(names: Iterable[str]) -> str:
    """Names of layers, those of all blocks in one: ``transformer_blocks.*.norm1.linear (24)``."""
    counts: dict[str, int] = {}
    for name in names:
        key = re.sub(r"\.\d+\.", ".*.", name)
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())
