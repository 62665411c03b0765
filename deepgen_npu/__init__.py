"""DeepGen 1.0 without remote code: text-to-image and image editing on Ascend NPU, CUDA and CPU.

The names below are loaded on first use, so that ``import deepgen_npu`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .checkpoint.folder import Checkpoint
    from .conditioning import Conditioning
    from .errors import CheckpointError, LoraError
    from .pipeline import DeepGenPipeline, DeepGenPipelineOutput

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Conditioning",
    "DeepGenPipeline",
    "DeepGenPipelineOutput",
    "LoraError",
]

_HOME = {
    "Checkpoint": "checkpoint.folder",
    "CheckpointError": "errors",
    "Conditioning": "conditioning",
    "DeepGenPipeline": "pipeline",
    "DeepGenPipelineOutput": "pipeline",
    "LoraError": "errors",
}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
