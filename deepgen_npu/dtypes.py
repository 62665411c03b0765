"""The dtypes of weights, once: their names for users, in PyTorch and in safetensors files. torch is imported late."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "bfloat16", "float16", "float32")
"""What a user chooses the dtype of a model from, in the order in which it is shown."""

_STORED = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}

ITEM_BYTES = {stored: nbytes for stored, (_, nbytes) in _STORED.items()}
"""Bytes of one element by the dtype's name in a safetensors file; others are not read."""

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""Of tensors that other programs hand over, by their names in PyTorch."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype with a name of PyTorch's, such as ``bfloat16``."""
    import torch

    return getattr(torch, name)


def stored_dtype(name: str) -> torch.dtype:
    """The dtype with a safetensors name, such as ``BF16``."""
    return torch_dtype(_STORED[name][0])


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
