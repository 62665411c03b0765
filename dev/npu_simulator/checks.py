"""Checks that the reference kernels share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_floats(name: str, allowed: Sequence[torch.dtype] = FLOATS, **tensors: Tensor) -> None:
    for argument, tensor in tensors.items():
        if tensor.dtype not in allowed:
            raise RuntimeError(f"{name}: {argument} is {tensor.dtype}; wanted {', '.join(map(str, allowed))}")


def halves(name: str, input: Tensor, dim: int) -> tuple[Tensor, ...]:
    if input.shape[dim] % 2:
        raise RuntimeError(f"{name}: dimension {dim} of {tuple(input.shape)} has no halves")
    return input.chunk(2, dim)


def refuse(name: str, **arguments: object) -> None:
    for argument, given in arguments.items():
        if given is not None:
            raise RuntimeError(f"{name}: {argument} is not modelled")
