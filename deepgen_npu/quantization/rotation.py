"""The rotation of ConvRot: groups of neighbouring columns times a regular Hadamard matrix.

A weight with few large values is spread over its group, so that one scale a row fits all of it. Inputs are rotated
likewise, and since the matrix is orthogonal and symmetric, the product is the same.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def rotate(x: Tensor, group: int) -> Tensor:
    """Rotate the last dimension; twice is x again.

    Args:
        x: [..., n] with n a multiple of ``group``, in any floating dtype, which the result has.
        group: A power of 4.
    """
    matrix = hadamard(group, x.device, x.dtype)
    return (x.unflatten(-1, (-1, group)) @ matrix).flatten(-2)  # [..., n / group, group]


@functools.cache
def _hadamard(size: int, device: str, dtype: torch.dtype) -> Tensor:
    quarter = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, quarter)
    return (matrix / size**0.5).to(device, dtype)


@torch.inference_mode(False)
def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The regular Hadamard matrix [size, size] of a power of 4, orthogonal and symmetric; its entries are exact.

    Built of the matrix of 4 that ComfyUI uses, by Kronecker products: of the several that there are, files mean this.
    It is kept for as long as the process runs, since captured graphs refer to it.
    """
    return _hadamard(size, str(device), dtype)
