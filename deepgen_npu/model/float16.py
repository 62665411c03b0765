"""float16 for a model that was trained in bfloat16, whose range is that of float32; float16 ends at 65504.

Weights, and what normalisations and most products make of them, fit into float16. Two things may not, and stay wider
where a model is in float16; in other dtypes nothing here changes a bit:

* The sum that runs through the layers, to which each of them adds (the residual). It is kept in float32.
* What enters a layer without a normalisation before it. `scaled_linear` brings each row into range by a power of two,
  which is exact, and takes it out of the result, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


LARGEST_INPUT = 256.0
"""What `scaled_linear` scales larger rows to: far from 65504, so that the products of a row can be summed, and far
from 6e-5, below which float16 loses digits."""


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the sums of a model whose weights have ``dtype``."""
    return torch.float32 if dtype == torch.float16 else dtype


def add_gated(total: Tensor, gate: Tensor, part: Tensor) -> Tensor:
    """total + gate x part, in the dtype of the sum.

    Args:
        total: [rows, tokens, width].
        gate: [rows, 1, width].
        part: [rows, tokens, width].
    """
    if total.dtype != part.dtype:  # their product may be out of range, too
        gate, part = gate.to(total.dtype), part.to(total.dtype)
    return torch.addcmul(total, gate, part)


def scaled_linear(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A linear layer for values that may be out of its range.

    Args:
        layer: With ``bias``, which may be None.
        x: [..., n], in `sum_dtype` of ``dtype``.
        dtype: In which the layer computes.

    Returns:
        [..., m] in the dtype of ``x``.
    """
    if x.dtype == dtype:
        return layer(x)
    largest = x.abs().amax(-1, keepdim=True)  # [..., 1]
    scale = torch.exp2((largest / LARGEST_INPUT).log2().ceil().clamp(min=0))  # [..., 1], 1 for rows within range
    scaled = layer((x / scale).to(dtype)).to(x.dtype)  # [..., m]
    if layer.bias is None:
        return scaled * scale
    # The bias is not scaled. The layer gives it, wherever and in whatever form its weights are.
    bias = layer(torch.zeros_like(x[..., :1, :], dtype=dtype)).to(x.dtype)  # [..., 1, m]
    return torch.addcmul(bias, scaled - bias, scale)


def layer_norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a LayerNorm module in ``dtype`` computes of a sum: [..., n] to the same in ``dtype``."""
    if x.dtype != dtype:
        # A normalised row is in range, and normalising it again changes nothing.
        x = F.layer_norm(x, x.shape[-1:], eps=module.eps).to(dtype)
    return module(x)
