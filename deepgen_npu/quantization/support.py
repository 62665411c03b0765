"""Which devices can compute with which formats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..formatting import command
from .formats import FP8, LayerFormat


if TYPE_CHECKING:
    import torch


def require_support(layers: Iterable[LayerFormat], device: torch.device) -> None:
    """Refuse float8 on an NPU: Ascend 910 has no tensors of that dtype.

    Raises:
        DeviceError: Naming the format to take instead.
    """
    if device.type == "npu" and any(layer.name == FP8 for layer in layers):
        make = command("python -m deepgen_npu quantize SOURCE TARGET --format int8_convrot")
        raise DeviceError(
            f"Weights in fp8 cannot be used on {device}: Ascend NPUs have no float8. Take int8_convrot, which they "
            f"accelerate:{make}"
        )
