"""The adaptive norms of the DiT: LayerNorm without weights, scaled and shifted by the modulation.

On an NPU with MindIE-SD (the package ``mindiesd``, optional) norm, scale and shift are one kernel, which adds one to
the scale by itself. `modulation` asks `fused_norm` whether it has to, so the two always agree: the answer depends on
device, dtype and width alone, and is the same for the life of a process.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm

from .float16 import sum_dtype
from .ops import fuses


logger = logging.getLogger(__name__)

EPS = 1e-6
"""Of every norm in SD3's blocks (diffusers, JointTransformerBlock)."""

_Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x [rows, tokens, width], scale and shift [rows, 1, width] to [rows, tokens, width]."""


def modulated_norms(x: Tensor, modulation: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Normalise, scale and shift, once for each pair of shift and scale.

    Args:
        x: [rows, tokens, width], in `float16.sum_dtype`.
        modulation: Pairs of shift and scale, [rows, 1, width] each, in the dtype of the weights, as of
            `modulation.modulate`.

    Returns:
        [rows, tokens, width] for each pair, in the dtype of the weights.
    """
    first = modulation[0][0]
    if (fused := fused_norm(first)) is not None:
        if not torch.is_grad_enabled():
            return [fused(x, scale, shift) for shift, scale in modulation]
        # While a LoRA is trained: the kernel has no gradient, and PyTorch would go on without one.
        modulation = [(shift, 1 + scale) for shift, scale in modulation]
    normalised = F.layer_norm(x, x.shape[-1:], eps=EPS).to(first.dtype)  # [rows, tokens, width]
    return [torch.addcmul(shift, normalised, scale) for shift, scale in modulation]


def fused_norm(modulation: Tensor) -> _Norm | None:
    """norm(x) * (1 + scale) + shift in one kernel, for modulation like this; None where there is no such kernel.

    Args:
        modulation: [..., width].
    """
    if not fuses(modulation) or sum_dtype(modulation.dtype) != modulation.dtype:
        return None
    return _of_mindiesd(modulation.device, modulation.dtype, modulation.shape[-1])


@functools.cache
def _of_mindiesd(device: torch.device, dtype: torch.dtype, width: int) -> _Norm | None:
    """MindIE-SD's kernel, if it is installed and right on this card."""
    try:
        import mindiesd  # pyright: ignore[reportMissingImports]

        fused = _bound(mindiesd.layernorm_scale_shift, width)
        difference = _difference(fused, device, dtype, width)
    except ModuleNotFoundError as error:
        if error.name != "mindiesd":
            logger.warning("mindiesd does not load, so the plain modulation norm is used: %s", error)
        return None
    # Whatever a package of operators raises: the plain form is always there.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("The modulation norm of mindiesd fails on %s, so the plain one is used: %s", device, reason)
        return None
    if not difference <= _tolerance(dtype):
        logger.warning(
            "The modulation norm of mindiesd is wrong on %s (by %.2g), so the plain one is used.", device, difference
        )
        return None
    logger.info("The modulation norm of mindiesd is used on %s (checked: off by at most %.2g).", device, difference)
    return fused


def _bound(operator: Any, width: int) -> _Norm:
    """MindIE-SD's function, which takes the epsilon from a module, for one width."""
    with torch.device("meta"):
        module = LayerNorm(width, EPS, elementwise_affine=False)
    return lambda x, scale, shift: operator(module, x, scale, shift, fused=True)


def _difference(fused: _Norm, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest difference to the plain form in float32, where values are about 1: of rows that all differ."""
    generator = torch.Generator().manual_seed(0)
    x, modulation = (torch.randn(2, n, width, generator=generator).to(dtype) for n in (5, 3))  # [2, n, width] each
    shift, scale = modulation[:, 1, None].float(), modulation[:, 2, None].float()  # [2, 1, width] each
    expected = F.layer_norm(x.float(), (width,), eps=EPS) * (1 + scale) + shift  # [2, 5, width]
    modulation = modulation.to(device)
    # Parts of one tensor, as in a step: their rows are no neighbours.
    found = fused(x.to(device), modulation[:, 2, None], modulation[:, 1, None]).float().cpu()  # [2, 5, width]
    return float(((found - expected).abs() / expected.abs().clamp_min(1)).max())


def _tolerance(dtype: torch.dtype) -> float:
    """A few roundings of the dtype, at values of about 1."""
    return 4 * torch.finfo(dtype).eps
