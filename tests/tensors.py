"""Reading safetensors files so that they can be changed afterwards."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load
from torch import Tensor


def load_file(path: Path) -> dict[str, Tensor]:
    """Not safetensors' own `load_file`, whose tensors lie in the file: Windows then refuses to replace it."""
    return load(path.read_bytes())
