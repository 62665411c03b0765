"""The layers of a stock model as ComfyUI's own, whose weights may stay on the CPU and come to the device when used.

ComfyUI's memory manager loads as many layers as there is room for, and patches their weights. Its layers derive from
PyTorch's and need only a few attributes more, so the class of each layer is exchanged in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from .quantized import adopt_quantized


_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)

_GIVE_BACK: Callable[..., None] | None = vars(comfy.ops).get("uncast_bias_weight")
_LENDING = {} if _GIVE_BACK is None else {"offloadable": True}
"""Since 0.8 a weight may be lent from memory that the next one is brought to, and is then given back after its use."""


class _LentWeight(comfy.ops.CastWeightBiasOp):
    """A layer whose weight is lent to a function that is not its own forward (see `ops.with_weight`)."""

    weight: Tensor

    def is_plain(self) -> bool:
        """Whether the weight is on the device and nothing is added to it (see `projections.project`)."""
        return not (self.comfy_cast_weights or self.weight_function or self.bias_function)

    def with_weight(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        weight = self.weight
        if weight.device == x.device and weight.dtype == x.dtype and not self.weight_function:
            return function(weight)
        weight, *rest = comfy.ops.cast_bias_weight(self, x, **_LENDING)
        try:
            return function(weight)
        finally:
            if _GIVE_BACK is not None:
                _GIVE_BACK(self, weight, *rest)


def make_castable(root: nn.Module, dtype: torch.dtype) -> None:
    """Exchange the classes of all layers below ``root``, once.

    Args:
        root: Holds the layers.
        dtype: In which quantised layers compute.
    """
    adopt_quantized(root, dtype)
    for module in root.modules():
        kind = type(module)
        if isinstance(module, comfy.ops.CastWeightBiasOp):
            continue
        # Of a subclass the forward may be another, so its exact type counts. Norms are told by their names: each
        # library has its own.
        if kind in _LAYERS or (kind.__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None):
            module.__class__ = _castable(kind)
        else:
            continue
        layer: Any = module
        # Its own lists: those of the class are shared by all layers, and ComfyUI extends them.
        layer.weight_function, layer.bias_function = [], []
        if not hasattr(layer, "bias"):
            layer.bias = None  # ComfyUI reads it


@cache
def _castable(kind: type[nn.Module]) -> type:
    """ComfyUI's class of a layer, which also lends its weight.

    Those of ``disable_weight_init`` take the ordinary way while all weights are on the device: ComfyUI marks the
    layers that it leaves on the CPU.
    """
    of_comfyui = getattr(comfy.ops.disable_weight_init, kind.__name__, None) if kind in _LAYERS else None
    bases = (_LentWeight, of_comfyui) if of_comfyui else (_LentWeight, kind)
    return type(f"Castable{kind.__name__}", bases, {})


def place_rest(patcher: Any, device: torch.device, *options: Any) -> None:
    """For ``CallbacksMP.ON_LOAD``: parameters and buffers that no such layer has, a few KiB, go to the device.

    A partial load leaves them on the CPU: the frequencies of rotary embeddings, and bare parameters.
    """
    for module in patcher.model.modules():
        if hasattr(module, "comfy_cast_weights"):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.device != device:
                module._parameters[name] = nn.Parameter(parameter.to(device), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
