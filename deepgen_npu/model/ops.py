"""The operators for which Ascend has a fused kernel, each with the plain form that every other device runs.

What decides is the device of the tensor, not whether torch_npu is installed: on an Ascend host the CPU runs the plain
form, too. (diffusers' own RMSNorm calls ``npu_rms_norm`` for CPU tensors wherever the package is there, and fails.)
"""

from __future__ import annotations

import functools
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
        x: [b, L, heads, d].
        cos: [b or 1, L, 1, d] in the dtype of ``x``, as ``sin``.
    """
    if on_npu(x):
        return torch.ops.npu.npu_rotary_mul(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, scaled by the square root of d.

    Args:
        q: [b, L, heads, d].
        k: [b, S, kv heads, d]; heads are a multiple of kv heads.
        v: As ``k``.
        mask: What `attention_mask` made, or None.

    Returns:
        [b, L, heads, d].
    """
    if on_npu(q):
        # Called directly: PyTorch's function has the heads before the tokens, which costs the device a transposition
        # of queries, keys, values and result. No row is without a key, so the plain inner_precise is right.
        return _fused_attention()(q, k, v, q.shape[2], "BSND", atten_mask=mask, scale=q.shape[-1] ** -0.5)[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


def attention_mask(allowed: Tensor) -> Tensor:
    """A mask as `attention` takes it on the device of ``allowed``, made of it in place.

    Args:
        allowed: [b, 1, L, S] boolean, True where a query may attend; every row has one. No smaller: the fused kernel
            does not broadcast a mask over queries or keys.
    """
    return allowed.logical_not_() if on_npu(allowed) else allowed


@functools.cache
def _fused_attention() -> Any:
    """The third form returns nothing that the host has to know, the first is in every release."""
    operators = torch.ops.npu
    return getattr(operators, "npu_fusion_attention_v3", None) or operators.npu_fusion_attention


def norm(module: Any, x: Tensor) -> Tensor:
    """What an RMSNorm module of transformers computes."""
    return rms_norm(x, module.weight, module.variance_epsilon)


def gated_mlp(module: Any, x: Tensor) -> Tensor:
    """What a gated feed-forward module of transformers computes (Qwen2MLP and its like, with silu)."""
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))
