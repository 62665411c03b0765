"""The operators for which Ascend has a fused kernel, each with the plain form that every other device runs.

What decides is the device of the tensor, not whether torch_npu is installed: on an Ascend host the CPU runs the plain
form, too. (diffusers' own RMSNorm calls ``npu_rms_norm`` for CPU tensors wherever the package is there, and fails.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def on_npu(tensor: Tensor) -> bool:
    return tensor.device.type == "npu"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation over the last dimension, computed in float32.

    Args:
        x: [..., n].
        weight: [n].
    """
    if on_npu(x):
        return torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
    scaled = x.float()
    scaled = scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x.dtype) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up."""
    if on_npu(gate):
        return torch.ops.npu.npu_swiglu(torch.cat([gate, up], dim=-1), -1)
    return F.silu(gate) * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of halves, as in Llama and Qwen2-VL.

    Args:
        x: [b, heads, L, d].
        cos: [b, 1, L, d], as ``sin``.
    """
    if on_npu(x):
        return torch.ops.npu.npu_rotary_mul(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def norm(module: Any, x: Tensor) -> Tensor:
    """What an RMSNorm module of transformers computes."""
    return rms_norm(x, module.weight, module.variance_epsilon)


def gated_mlp(module: Any, x: Tensor) -> Tensor:
    """What a gated feed-forward module of transformers computes (Qwen2MLP and its like, with silu)."""
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))
