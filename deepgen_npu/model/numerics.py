"""A check of results."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module


def require_finite(values: Tensor, what: str, models: Mapping[str, Module]) -> None:
    """Refuse a result that would become a black picture.

    Args:
        models: What made it, by the name of the part. Only now, when it counts, their weights are looked at.

    Raises:
        FloatingPointError: With advice, when a value is NaN or infinite.
    """
    if torch.isfinite(values).all():
        return
    for part, model in models.items():
        for name, weights in model.named_parameters():
            if not torch.isfinite(weights).all():
                raise FloatingPointError(
                    f"{what} became NaN or infinite, since {name} of the {part} is ({weights.dtype}): the file in "
                    f"{part}/ is damaged, or its values are too large for this dtype. Download it again, or choose "
                    "float32 as dtype."
                )
    advice = {
        torch.float16: "Choose bfloat16 or float32 as dtype (torch_dtype in the library)",
        torch.bfloat16: "Choose float32 as dtype (torch_dtype in the library)",
    }.get(values.dtype, "Check the files with `python -m deepgen_npu check FOLDER`")
    raise FloatingPointError(
        f"{what} became NaN or infinite in {values.dtype} on {values.device}; the picture would be black. "
        f"{advice}, or lower the guidance scale."
    )
