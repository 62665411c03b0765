"""Argument checks of the reference kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_floats(name: str, allowed: Sequence[torch.dtype] = FLOATS, **tensors: Tensor) -> None:
    """Refuse tensors of other dtypes."""
    for argument, tensor in tensors.items():
        if tensor.dtype not in allowed:
            raise RuntimeError(f"{name}: {argument} must be one of {', '.join(map(str, allowed))}, got {tensor.dtype}")


def halves(name: str, input: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Both halves along a dimension."""
    if input.shape[dim] % 2:
        raise RuntimeError(f"{name}: dimension {dim} of {tuple(input.shape)} must be even")
    return input.chunk(2, dim)


def refuse(name: str, **arguments: object) -> None:
    """Refuse arguments that the kernel does not implement."""
    for argument, given in arguments.items():
        if given is not None:
            raise RuntimeError(f"{name}: {argument} is not implemented")
