"""A linear layer whose weight stays quantised in memory."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Linear

from ..dtypes import stored_dtype
from .formats import FP8, INT8, LARGEST_GROUP, STORED, LayerFormat
from .rotation import hadamard, rotate
from .values import dequantize, quantize


logger = logging.getLogger(__name__)

ROTATE_QUANT_WIDTHS = range(128, 16001, 8)
"""Widths that ``npu_rotate_quant`` takes on the 910B and 910C (torch_npu's page of the operator)."""

ROTATE_QUANT_LEAST_GROUP = 16
"""The smallest matrix that it takes; from the same page."""


class QuantizedLinear(nn.Module):
    """Takes the place of a ``torch.nn.Linear``.

    On an NPU from the 910B on, inputs are quantised row by row and multiplied in int8. On a GPU comfy-kitchen does the
    same if it is installed; without it, elsewhere, and always with float8, the weight of one layer at a time is
    dequantised. (On a CPU comfy-kitchen takes up to three times as long as that in bfloat16, and rounds the inputs as
    well.)

    Args:
        layer: How the weight is stored.
        in_features: Columns of the weight.
        out_features: Rows of the weight.
        bias: A vector, shared; or None.
    """

    def __init__(self, layer: LayerFormat, in_features: int, out_features: int, bias: nn.Parameter | None):
        super().__init__()
        self.layer, self.in_features, self.out_features = layer, in_features, out_features
        scales = (out_features, 1) if layer.name == INT8 else ()
        stored = torch.empty(out_features, in_features, dtype=stored_dtype(STORED[layer.name]), device="meta")
        self.weight = nn.Parameter(stored, requires_grad=False)
        # A buffer: libraries take the dtype of a model from its parameters.
        self.register_buffer("weight_scale", torch.empty(scales, dtype=torch.float32, device="meta"))
        self.register_parameter("bias", bias)
        self.weight_scale: Tensor

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, bias={self.bias is not None}, {self.layer.title}"

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in ``dtype``; computed in float32 and rounded once."""
        return dequantize(self.weight, self.weight_scale, self.layer, dtype)

    def as_linear(self, dtype: torch.dtype) -> Linear:
        """A plain layer with the same bias, and the weight in ``dtype``."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=False)
        plain.weight = nn.Parameter(self.dequantized(dtype), requires_grad=False)
        plain.bias = self.bias
        return plain

    @torch.no_grad()
    def quantize_(self, weight: Tensor) -> None:
        """Take another weight, [out, in] in any floating dtype, at the same addresses."""
        stored, scale = quantize(weight, self.layer)
        self.weight.copy_(stored)
        self.weight_scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the dtype of ``x``."""
        if self.layer.name == FP8:
            return F.linear(x, self.dequantized(x.dtype), self.bias)
        if x.device.type == "npu" and torch.npu.is_bf16_supported():  # from the 910B on (see `model.ops.fuses`)
            return self._on_npu(x)
        if x.device.type == "cuda" and comfy_kitchen() is not None:
            return self._by_kitchen(x)
        # The rotation of the weight is left to the input, which has fewer rows.
        x = rotate(x, self.layer.group) if self.layer.group else x
        return F.linear(x, (self.weight.float().mul_(self.weight_scale)).to(x.dtype), self.bias)

    def _by_kitchen(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        given = (
            self.weight,
            self.weight_scale,
            self.bias,
            x.dtype,
            self.layer.group > 0,
            self.layer.group or LARGEST_GROUP,
        )
        return comfy_kitchen().int8_linear(rows, *given).reshape(*x.shape[:-1], self.out_features)

    def _on_npu(self, x: Tensor) -> Tensor:
        """Ascend's operators directly; they take float16 and bfloat16."""
        dtype = torch.bfloat16 if x.dtype == torch.float32 else x.dtype
        rows = x.reshape(-1, self.in_features).to(dtype)
        fused = rotate_quant() if self._fits_rotate_quant() else None
        if fused is not None:
            quantized, scale = fused(rows, hadamard(self.layer.group, x.device, dtype))
        else:
            rows = rotate(rows, self.layer.group) if self.layer.group else rows
            quantized, scale = torch.ops.npu.npu_dynamic_quant(rows.contiguous())
        result = torch.ops.npu.npu_quant_matmul(
            quantized,
            self.weight.t(),  # [in, out], a view
            self.weight_scale.reshape(-1),
            pertoken_scale=scale,
            bias=None if self.bias is None else self.bias.to(dtype),
            output_dtype=dtype,
        )
        return result.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _fits_rotate_quant(self) -> bool:
        return self.layer.group >= ROTATE_QUANT_LEAST_GROUP and self.in_features in ROTATE_QUANT_WIDTHS


def replace_layers(model: nn.Module, layers: Mapping[str, LayerFormat]) -> None:
    """Put quantised layers without memory in the places of linear ones, by module name.

    Raises:
        TypeError: For the name of another kind of module.
    """
    for name, layer in layers.items():
        linear = model.get_submodule(name)
        if not isinstance(linear, Linear):
            raise TypeError(f"{name} is not a linear layer but {type(linear).__name__}.")
        parent, _, child = name.rpartition(".")
        quantized = QuantizedLinear(layer, linear.in_features, linear.out_features, linear.bias)
        setattr(model.get_submodule(parent), child, quantized)


def quantized_layers(model: nn.Module) -> dict[str, LayerFormat]:
    """The quantised layers of a model, by module name."""
    return {name: module.layer for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def workspace_bytes(model: nn.Module, itemsize: int) -> int:
    """Most bytes that a layer needs for its dequantised weight, once in float32 and once in ``itemsize``."""
    layers = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    return (4 + itemsize) * max((one.in_features * one.out_features for one in layers), default=0)


@functools.cache
def comfy_kitchen() -> Any:
    """The package comfy-kitchen, which has int8 kernels; None where it is not installed."""
    try:
        return importlib.import_module("comfy_kitchen")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "comfy_kitchen":
            logger.warning("comfy-kitchen does not load, so int8 layers are dequantised one by one: %s", error)
        return None


@functools.cache
def rotate_quant() -> Any:
    """``npu_rotate_quant``, rotation and quantisation in one; None where torch_npu or the card does not have it.

    The Ascend 950 has it for other formats than int8. Called with its defaults, which are the same in all releases.
    """
    operator = getattr(torch.ops.npu, "npu_rotate_quant", None)
    return None if operator is None or "950" in torch.npu.get_device_name() else operator
