"""Dtypes of weights: their names for users, in PyTorch and in safetensors files. torch is imported when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "bfloat16", "float16", "float32")
"""The dtypes that a user can choose for a model, in the order in which they are shown."""

_STORED = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}

ITEM_BYTES = {stored: nbytes for stored, (_, nbytes) in _STORED.items()}
"""Bytes of one element, by the dtype's name in a safetensors file. Other dtypes are not read."""

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""Dtypes of tensors that other programs may pass in, by their names in PyTorch."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype with a PyTorch name, such as ``bfloat16``."""
    import torch

    return getattr(torch, name)


def stored_dtype(name: str) -> torch.dtype:
    """The dtype with a safetensors name, such as ``BF16``."""
    return torch_dtype(_STORED[name][0])


def dtype_name(dtype: torch.dtype) -> str:
    """The PyTorch name of a dtype: ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
