"""Quantised layers as ComfyUI's own, which its memory manager moves and patches, and whose operators it chooses.

A version that has no operators for a format gets plain layers, whose weights are dequantised once.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...deepgen_npu.quantization.formats import INT8, MARK, SCALE
from ...deepgen_npu.quantization.linear import QuantizedLinear


logger = logging.getLogger(__name__)

ASCEND_SINCE = "0.2.40"
"""The first comfy-kitchen that has a backend for Ascend."""


# ComfyUI's quantised tensors move in inference mode only if they were made in it, and are copied outside of it.
@torch.inference_mode()
def adopt_quantized(root: nn.Module, dtype: torch.dtype) -> None:
    """Exchange the quantised layers below ``root`` for what this ComfyUI runs.

    Args:
        root: Holds the layers.
        dtype: In which the part computes.
    """
    layers = {name: module for name, module in root.named_modules() if isinstance(module, QuantizedLinear)}
    if not layers:
        return
    formats = {module.layer.name for module in layers.values()}
    ours = {name for name in formats if _has_operators(name)}
    for name in formats - ours:
        kind = "int8" if name == INT8 else "fp8"
        _warn_once(
            f"This ComfyUI has no operators for {kind} weights: they are dequantised, and take as much memory as "
            "others. To keep them small, update ComfyUI, or install comfy-kitchen where it is missing."
        )
    whole = INT8 in ours and _multiplies_whole(dtype)
    for name, module in layers.items():
        if module.layer.name in ours:
            _adopt(module, dtype, whole)
        else:
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, module.as_linear(dtype))


def _quant_ops() -> dict[str, Any]:
    """What ``comfy.quant_ops`` has; versions before it have nothing."""
    try:
        return vars(importlib.import_module("comfy.quant_ops"))
    except ImportError:
        return {}


def _has_operators(name: str) -> bool:
    found = _quant_ops()
    settings = found.get("QUANT_ALGOS", {}).get(name)
    if settings is None or "mixed_precision_ops" not in vars(comfy.ops):
        return False
    # Without comfy-kitchen there are names of layouts, but no layouts.
    return found["get_layout_class"](settings["comfy_tensor_layout"]) is not None


def _multiplies_whole(dtype: torch.dtype) -> bool:
    """Whether int8 layers are to be dequantised one by one where they are, instead of rounding their inputs to int8.

    So it is on the CPU, where that is slower and less exact, and where comfy-kitchen has no kernels; and on an NPU
    where it would compute on the CPU what it has no Ascend operator for: older ones, and all in float32.
    """
    kind = mm.get_torch_device().type
    if kind != "npu":
        return kind != "cuda"
    if dtype == torch.float32:
        _warn_once(
            "Ascend's int8 operators take bfloat16 and float16: with dtype float32, int8 weights are dequantised on "
            "the card, layer by layer. Choose auto to multiply in int8."
        )
        return True
    ascend: dict[str, Any] = _quant_ops()["ck"].list_backends().get("ascend", {})
    if ascend.get("available") and not ascend.get("disabled") and "int8_linear" in ascend.get("capabilities", ()):
        return False
    _warn_once(
        "This comfy-kitchen has no operators for Ascend: int8 weights are dequantised on the card, layer by layer. "
        f"comfy-kitchen >= {ASCEND_SINCE} has them (pip install --upgrade comfy-kitchen)."
    )
    return True


@functools.cache
def _warn_once(message: str) -> None:
    """DiT, VLM and connector come one after the other, and again for each model."""
    logger.warning("%s", message)


def _adopt(module: QuantizedLinear, dtype: torch.dtype, whole: bool) -> None:
    """Exchange the class of a layer for ComfyUI's, and let it read the tensors as if from a file."""
    state = {
        "weight": module.weight.data,
        SCALE: module.weight_scale,
        MARK: torch.tensor(list(module.layer.mark()), dtype=torch.uint8),
    }
    if module.bias is not None:
        state["bias"] = module.bias.data
    device, shape = module.weight.device, (module.out_features, module.in_features)
    del module._buffers[SCALE]
    module.__class__ = _core_class(dtype, module.layer.name == INT8 and whole)
    layer: Any = module
    layer.factory_kwargs = {"device": device, "dtype": dtype}
    layer._orig_shape = shape
    layer.tensor_class, layer._full_precision_mm, layer._full_precision_mm_config = None, False, False
    layer.weight_function, layer.bias_function = [], []
    layer.load_state_dict(state)
    layer.weight.requires_grad_(False)


@functools.cache
def _core_class(dtype: torch.dtype, whole: bool) -> type[nn.Module]:
    """ComfyUI's quantised layer, which computes in a dtype.

    Args:
        dtype: Of inputs, biases and results.
        whole: Dequantise the weight instead of rounding inputs to int8; ComfyUI's own switch for that does not reach
            the operator of int8.
    """
    operators = vars(comfy.ops)["mixed_precision_ops"]({"mixed_ops": True}, dtype)
    if not whole:
        return operators.Linear

    quantized_tensor = _quant_ops()["QuantizedTensor"]

    class WholeLinear(operators.Linear):
        def _forward(self, input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
            whole = weight.dequantize() if isinstance(weight, quantized_tensor) else weight
            return F.linear(input, whole, bias)

    return WholeLinear
