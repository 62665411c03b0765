"""How a quantised layer is stored, and which formats there are. Nothing here needs torch.

Beside ``X.weight`` such a layer has ``X.weight_scale`` and ``X.comfy_quant``, JSON in a tensor of bytes that says how
the first two are to be read. These are the names and the JSON of ComfyUI (QUANTIZATION.md of Comfy-Org/ComfyUI), so
that ComfyUI's own operators run the same files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import must_be


FORMATS = ("int8_convrot", "int8", "fp8")
"""What a user can choose, the best first."""

SCALE, MARK, INPUT_SCALE = "weight_scale", "comfy_quant", "input_scale"
"""Beside ``weight``, in files."""

METADATA_KEY = "_quantization_metadata"
"""In the header of a file whose layers have no tensor `MARK`."""

LARGEST_GROUP = 256
"""Of ComfyUI's ConvRot: larger ones cost more and gain nothing."""

INT8, FP8 = "int8_tensorwise", "float8_e4m3fn"
"""Formats by their names in files."""

STORED = {INT8: "I8", FP8: "F8_E4M3"}
"""The dtype of the weight, by its name in a safetensors file."""


@dataclass(frozen=True)
class LayerFormat:
    """How the weight of one layer is stored.

    Attributes:
        name: `INT8`, with one scale for each row or one for all; or `FP8`, with one scale for all.
        group: Of ConvRot: so many neighbouring columns of the weight were rotated together by a Hadamard matrix, which
            spreads outliers. 0 without it.
    """

    name: str
    group: int = 0

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> LayerFormat:
        """From the JSON of a layer.

        Raises:
            ValueError: For a format that is not known here.
        """
        name = settings.get("format")
        if name not in STORED:
            raise ValueError(must_be("format", " or ".join(STORED), name, advice=WHAT_TO_DO))
        more = settings.get("params")
        settings = {**more, **settings} if isinstance(more, dict) else settings
        if name != INT8 or not settings.get("convrot", False):
            return cls(name)
        group = settings.get("convrot_groupsize", LARGEST_GROUP)
        if type(group) is not int or group not in groups_of(LARGEST_GROUP):
            options = ", ".join(map(str, groups_of(LARGEST_GROUP)))
            raise ValueError(must_be("convrot_groupsize", f"one of {options}", group, advice=WHAT_TO_DO))
        return cls(name, group)

    def settings(self) -> dict[str, Any]:
        """The JSON of a layer."""
        if self.name == FP8:
            # Inputs stay as they are: rounded to float8 without a calibrated scale, they cost three times the error.
            return {"format": self.name, "full_precision_matrix_mult": True}
        rotation = {"convrot": True, "convrot_groupsize": self.group} if self.group else {}
        return {"format": self.name, **rotation}

    def mark(self) -> bytes:
        """The content of ``X.comfy_quant``."""
        return json.dumps(self.settings()).encode()

    @property
    def title(self) -> str:
        """One of `FORMATS`."""
        return "fp8" if self.name == FP8 else "int8_convrot" if self.group else "int8"


WHAT_TO_DO = f"Files are made by `quantize`, in one of the formats {', '.join(FORMATS)}."


def groups_of(width: int) -> list[int]:
    """Sizes of groups that divide a width, the largest first: powers of 4, which regular Hadamard matrices have."""
    return [size for size in (256, 64, 16, 4) if width % size == 0]


def format_for(title: str, width: int) -> LayerFormat | None:
    """How a layer is stored in a format of `FORMATS`; None if its width does not allow it.

    Args:
        title: One of `FORMATS`.
        width: Columns of the weight.
    """
    if title == "int8_convrot":
        groups = groups_of(width)
        return LayerFormat(INT8, groups[0]) if groups else None
    return LayerFormat(FP8 if title == "fp8" else INT8)


def quantized_title(layers: Mapping[str, LayerFormat]) -> str:
    """For people: the formats of a part's quantised layers; nothing if there are none."""
    counts = Counter(layer.title for layer in layers.values())
    return ", ".join(f"{count} layers {title}" for title, count in sorted(counts.items()))
