"""The check that results are finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module


def require_finite(values: Tensor, what: str, models: Mapping[str, Module], dtype: torch.dtype | None = None) -> None:
    """Refuse a result that would become a black image.

    Args:
        values: The result.
        what: Its name, for the message.
        models: The models that made it, by the name of the part. Their weights are checked only if it is not finite.
        dtype: In which they computed, where the result has another.

    Raises:
        FloatingPointError: With advice, when a value is NaN or infinite.
    """
    if _is_finite(values):
        return
    for part, model in models.items():
        for name, weights in model.named_parameters():
            if not torch.isfinite(weights).all():
                raise FloatingPointError(
                    f"{what} became NaN or infinite, since {name} of the {part} is ({weights.dtype}): the file in "
                    f"{part}/ is damaged, or its values are too large for this dtype. Download it again, or choose "
                    "float32 as dtype."
                )
    dtype = dtype or values.dtype
    advice = {
        torch.float16: "choose float32 as dtype, or bfloat16 where the card has it (torch_dtype in the library).",
        torch.bfloat16: "choose float32 as dtype (torch_dtype in the library).",
    }.get(dtype, "check the files of the model with the command check.")
    raise FloatingPointError(
        f"{what} became NaN or infinite in {dtype} on {values.device}; the image would be black. "
        f"Lower the guidance scale, or {advice}"
    )


def _is_finite(values: Tensor) -> bool:
    """False also for the largest number of float16: NPUs from before the 910B have no infinity, and stop there.

    (torch_npu/npu/utils.py, ``is_support_inf_nan``.)
    """
    if values.dtype == torch.float16:
        return bool((values.abs() < torch.finfo(values.dtype).max).all())
    return bool(torch.isfinite(values).all())
