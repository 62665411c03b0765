"""The operators for which Ascend has a fused kernel, each with the plain form that every other device runs.

The device of the tensor decides, not whether torch_npu is installed: on an Ascend host the CPU runs the plain form,
and so does a card from before the 910B.
(diffusers' own RMSNorm calls ``npu_rms_norm`` also for CPU tensors if the package is installed, and fails.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .float16 import scaled_linear, sum_dtype


@functools.cache
def _answer(question: Callable[[], bool]) -> bool:
    """Asked once: it costs two microseconds, and a step would ask 300 times."""
    return question()


def fuses(tensor: Tensor) -> bool:
    """Whether a tensor is on an NPU whose fused kernels can be used: those from the 910B on.

    Those before it have no ``npu_fusion_attention``, and of the others only some dtypes and shapes. They are told by
    bfloat16: torch_npu orders chips by number, and asks for the same one before it calls that kernel by itself
    (Ascend/op-plugin, ScaledDotProductAttentionKernelNpuOpApi.cpp) and for bfloat16.
    """
    if tensor.device.type != "npu":
        return False
    backend: Any = torch.npu  # pyright: ignore[reportAttributeAccessIssue]
    return _answer(backend.is_bf16_supported)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation over the last dimension, computed in float32.

    Args:
        x: [..., n].
        weight: [n].
        eps: Added to the mean square.
    """
    if fuses(x):
        return torch.ops.npu.npu_rms_norm(x, weight, eps)[0]
    scaled = x.float()  # [..., n]
    scaled = scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + eps)  # [..., n] x [..., 1]
    return scaled.to(x.dtype) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up, elementwise; both [..., n]."""
    if fuses(gate):
        return torch.ops.npu.npu_swiglu(torch.cat([gate, up], dim=-1), -1)
    return F.silu(gate) * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of halves, as in Llama and Qwen2-VL.

    Args:
        x: [b, L, heads, d].
        cos: [b or 1, L, 1, d] in the dtype of ``x``.
        sin: As ``cos``.
    """
    if fuses(x):
        return torch.ops.npu.npu_rotary_mul(x, cos, sin)
    first, second = x.chunk(2, dim=-1)  # [b, L, heads, d/2] each
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, scaled by the square root of d.

    Args:
        q: [b, L, heads, d].
        k: [b, S, kv heads, d]; heads are a multiple of kv heads.
        v: As ``k``.
        mask: As `attention_mask` returns it, or None.

    Returns:
        [b, L, heads, d].
    """
    if fuses(q):
        # Called directly: PyTorch's function has the heads before the tokens, which costs the device a transposition
        # of queries, keys, values and result. Each query has a key, so the default inner_precise is right.
        return _fused_attention()(q, k, v, q.shape[2], "BSND", atten_mask=mask, scale=q.shape[-1] ** -0.5)[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [b, heads, L, d], [b, kv heads, S, d] twice
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


def attention_mask(allowed: Tensor) -> Tensor:
    """The mask that `attention` takes on the device of ``allowed``, computed in place.

    Args:
        allowed: [b, 1, L, S] boolean, True where a query may attend; every row has a True. It has the full shape,
            since the fused kernel does not broadcast a mask over queries or keys.
    """
    return allowed.logical_not_() if fuses(allowed) else allowed


@functools.cache
def _fused_attention() -> Any:
    """npu_fusion_attention_v3, which returns only tensors, or the form that every release of torch_npu has.

    The latter also returns integers (seed and offset of dropout), which the host has to know."""
    operators = torch.ops.npu
    return getattr(operators, "npu_fusion_attention_v3", None) or operators.npu_fusion_attention


def with_weight(module: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of a module's weight, which is on the device and in the dtype of ``x``.

    A host that leaves weights on the CPU, and brings each to the device while it is used, gives its modules a method
    ``with_weight``; the weights of other modules are where their input is.
    """
    host = getattr(module, "with_weight", None)
    return function(module.weight) if host is None else host(x, function)


def look_up(embedding: Any, ids: Tensor, device: torch.device) -> Tensor:
    """Rows of an embedding, looked up where its table is: 593 MiB as published, of which a prompt reads less than one.

    Args:
        embedding: A ``torch.nn.Embedding``, on any device.
        ids: [b, L], on the CPU.
        device: Where the rows are needed.

    Returns:
        [b, L, n].
    """
    table = embedding.weight
    return F.embedding(ids.to(table.device), table).to(device)


def norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What an RMSNorm module of transformers in ``dtype`` computes of a sum: [..., n] to the same in ``dtype``."""
    return with_weight(module, x, lambda weight: rms_norm(x, weight.to(x.dtype), module.variance_epsilon)).to(dtype)


def gated_mlp(module: Any, x: Tensor) -> Tensor:
    """What a gated feed-forward module of transformers computes (Qwen2MLP and its like, with silu).

    Args:
        module: In the dtype of ``x``.
        x: [..., n].

    Returns:
        [..., n] in `float16.sum_dtype`: products of two numbers are the first to leave the range of float16.
    """
    wide = sum_dtype(x.dtype)
    return scaled_linear(module.down_proj, swiglu(module.gate_proj(x).to(wide), module.up_proj(x).to(wide)), x.dtype)
