"""The tiny checkpoint with quantised layers."""

from __future__ import annotations

from pathlib import Path

from golden import TINY

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.quantization.layers import PARTS
from deepgen_npu.tools.quantize import plan, quantize


def write_quantized(folder: Path, title: str, parts: tuple[str, ...] = PARTS, source: Path = TINY) -> Path:
    """Write the folder, in one of the formats."""
    checkpoint = Checkpoint.open(source)
    quantize(checkpoint, folder, plan(checkpoint, title, parts))
    return folder
