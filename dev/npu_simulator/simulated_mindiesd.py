"""MindIE-SD (the package ``mindiesd``) on the simulated device, as far as the model uses it: its modulation norm.

Sources: mindiesd/layers/adalayernorm.py and csrc/plugin/register_ops.cpp of Ascend/MindIE-SD at commit 3066189, and
CANN's page of aclnnAdaLayerNorm (shapes, and that all dtypes are one).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_npu.model import adaptive_norm

from .checks import check_floats
from .simulated import state


SCHEMA = (
    "adaln(Tensor x, Tensor scale, Tensor shift, Tensor? weight=None, Tensor? bias=None, float? epsilon=1e-5)"
    " -> Tensor"
)
NAME = "mindiesd::adaln"

_libraries: list[torch.library.Library] = []


def adaln(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float | None = 1e-5,
) -> Tensor:
    """norm(x) * (1 + scale) + shift: [b, s, n] with [b, 1, n] or [b, n] to [b, s, n], rounded once."""
    check_floats("adaln", x=x, scale=scale, shift=shift)
    if not x.dtype == scale.dtype == shift.dtype:
        raise RuntimeError(f"adaln: all must be {x.dtype} like x, got {scale.dtype} and {shift.dtype}")
    for name, tensor in (("scale", scale), ("shift", shift)):
        if x.dim() != 3 or tuple(tensor.shape) not in ((len(x), x.shape[-1]), (len(x), 1, x.shape[-1])):
            raise RuntimeError(f"adaln: {name} {tuple(tensor.shape)} does not fit x {tuple(x.shape)}")
    if weight is not None or bias is not None:
        raise RuntimeError("adaln: weight and bias are not implemented")
    scale, shift = (tensor.float().reshape(len(x), 1, -1) for tensor in (scale, shift))
    normalised = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5 if epsilon is None else epsilon)
    return (normalised * (1 + scale) + shift).to(x.dtype)


@contextmanager
def installed(kernel: Callable[..., Tensor] = adaln) -> Iterator[None]:
    """``import mindiesd`` works in here.

    Args:
        kernel: Of the operator.
    """
    if not _libraries:
        library = torch.library.Library("mindiesd", "DEF")
        library.define(SCHEMA)
        library.impl("adaln", adaln, "Meta")
        _libraries.append(library)  # unregistered when collected
    module: Any = types.ModuleType("mindiesd")
    module.layernorm_scale_shift = _layernorm_scale_shift
    state.references[NAME] = kernel
    sys.modules["mindiesd"] = module
    adaptive_norm._of_mindiesd.cache_clear()
    try:
        yield
    finally:
        del sys.modules["mindiesd"], state.references[NAME]
        adaptive_norm._of_mindiesd.cache_clear()


def _layernorm_scale_shift(layernorm: Any, x: Tensor, scale: Tensor, shift: Tensor, fused: bool = True) -> Tensor:
    if not isinstance(layernorm, torch.nn.LayerNorm) or layernorm.elementwise_affine or not fused:
        raise NotImplementedError("Only norms without weights are simulated.")
    return torch.ops.mindiesd.adaln(x, scale, shift, epsilon=layernorm.eps)
