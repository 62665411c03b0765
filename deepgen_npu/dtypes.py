"""Dtypes of weights: their names for users, in PyTorch and in safetensors files. torch is imported when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "bfloat16", "float16", "float32")
"""The dtypes that a user can choose for a model, in the order in which they are shown."""

_STORED = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
}

ITEM_BYTES = {stored: nbytes for stored, (_, nbytes) in _STORED.items()}
"""Bytes of one element, by the dtype's name in a safetensors file. Other dtypes are not read."""

FLOATS_STORED = ("F64", "F32", "F16", "BF16")
"""Those of weights that are not quantised."""

_OTHERS = {
    **{"F8_E5M2": ("float8_e5m2", 1), "BOOL": ("bool", 1)},
    **{f"{kind}{bits}": (f"{'u' * (kind == 'U')}int{bits}", bits // 8) for kind in "IU" for bits in (8, 16, 32, 64)},
}
ANY_ITEM_BYTES = {**ITEM_BYTES, **{stored: nbytes for stored, (_, nbytes) in _OTHERS.items()}}
"""Bytes of one element of all dtypes of safetensors files that other programs write."""

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""Dtypes of tensors that other programs may pass in, by their names in PyTorch."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype with a PyTorch name, such as ``bfloat16``."""
    import torch

    return getattr(torch, name)


def stored_dtype(name: str) -> torch.dtype:
    """The dtype with a safetensors name, such as ``BF16``."""
    return torch_dtype({**_STORED, **_OTHERS}[name][0])


def is_float(name: str) -> bool:
    """Whether a dtype with a safetensors name is one of floats."""
    return name.startswith(("F", "BF"))


def dtype_of_part(part: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a part's weights in a model of ``dtype``.

    With float16 the VAE is in float32: its convolutions add up without the safeguards of `model.float16`. It has one
    percent of the weights.
    """
    return torch_dtype("float32") if part == "vae" and dtype_name(dtype) == "float16" else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The PyTorch name of a dtype: ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
