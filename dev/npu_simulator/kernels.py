"""Reference kernels, in plain PyTorch, of the fused operators that torch_npu adds.

Each checks its arguments as CANN documents them, so that a wrong layout, head count or mask is an error instead of a
wrong image. Arithmetic is in float32, the result in the dtype of the input. Arguments that are not implemented are
errors, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_kernels import npu_fusion_attention, npu_fusion_attention_v3, npu_prompt_flash_attention
from .checks import check_floats, halves, refuse
from .quant_kernels import npu_dynamic_quant, npu_quant_matmul, npu_rotate_quant


_libraries: list[torch.library.Library] = []


Observer = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]
"""Called after each call with the name of the operator, the arguments and the result."""


def register(key: str = "CPU", observe: Observer | None = None) -> None:
    """Implement the operators, whose schemas must exist, for a dispatch key of PyTorch."""
    library = torch.library.Library("npu", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel if observe is None else _observed(name, kernel, observe), key)
    _libraries.append(library)  # kernels are unregistered when their library is collected


def _observed(name: str, kernel: Callable, observe: Observer) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        observe(name, args, kwargs, result)
        return result

    return call


# Norms and activations


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(normalised input, float32 reciprocal of the root mean square). ``gamma`` has the input's last sizes."""
    check_floats("npu_rms_norm", input=input)
    if gamma.dtype != input.dtype:
        raise RuntimeError(f"npu_rms_norm: gamma must be {input.dtype} like the input, got {gamma.dtype}")
    if gamma.dim() == 0 or tuple(input.shape[-gamma.dim() :]) != tuple(gamma.shape):
        raise RuntimeError(f"npu_rms_norm: gamma {tuple(gamma.shape)} does not end the input {tuple(input.shape)}")
    dims = tuple(range(-gamma.dim(), 0))
    x = input.float()
    rstd = torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon)
    return (x * rstd * gamma.float()).to(input.dtype), rstd


def npu_add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised sum, reciprocal of its root mean square, sum)."""
    if x1.shape != x2.shape or x1.dtype != x2.dtype:
        raise RuntimeError("npu_add_rms_norm: x1 and x2 must have one shape and one dtype")
    total = x1 + x2
    normalised, rstd = npu_rms_norm(total, gamma, epsilon)
    return normalised, rstd, total


def npu_layer_norm_eval(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm over the last dimensions."""
    check_floats("npu_layer_norm_eval", input=input)
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) x second half along ``dim``."""
    check_floats("npu_swiglu", input=input)
    gate, up = halves("npu_swiglu", input, dim)
    return (F.silu(gate.float()) * up.float()).to(input.dtype)


def npu_geglu(
    input: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> tuple[Tensor, Tensor]:
    """(product, gelu of the half that is activated: the second unless ``activate_left``)."""
    check_floats("npu_geglu", input=input)
    gate, other = halves("npu_geglu", input, dim)
    if not activate_left:
        gate, other = other, gate
    activated = F.gelu(gate.float(), approximate="tanh" if approximate else "none").to(input.dtype)
    return other * activated, activated


def npu_fast_gelu(input: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which differs from gelu by up to 0.02."""
    check_floats("npu_fast_gelu", input=input)
    x = input.float()
    return (x * torch.sigmoid(1.702 * x)).to(input.dtype)


def npu_gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """gelu, exact or with tanh."""
    check_floats("npu_gelu", input=input)
    return F.gelu(input, approximate=approximate)


# Rotary embedding


def npu_rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """input x r1 (cosine) + rotated input x r2 (sine), all with four dimensions."""
    name = "npu_rotary_mul"
    check_floats(name, input=input, r1=r1, r2=r2)
    refuse(name, rotate=rotate)
    if input.dim() != 4 or r1.dim() != 4 or r1.shape != r2.shape:
        raise RuntimeError(f"{name}: input, r1 and r2 must have 4 dimensions, and r1 and r2 the same shape")
    if not r1.dtype == r2.dtype == input.dtype:
        raise RuntimeError(f"{name}: input, r1 and r2 are {input.dtype}, {r1.dtype}, {r2.dtype}")
    d = input.shape[-1]
    if d % 2 or d >= 896:
        raise RuntimeError(f"{name}: the head dimension must be even and below 896, got {d}")
    if not _has_rotary_layout(tuple(input.shape), tuple(r1.shape), rotary_mode):
        raise RuntimeError(f"{name}: no layout has the input {tuple(input.shape)} with r1 {tuple(r1.shape)}")
    if rotary_mode == "half":
        first, second = input.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
    else:
        rotated = torch.stack([-input[..., 1::2], input[..., ::2]], dim=-1).flatten(-2)
    return (input.float() * r1.float() + rotated.float() * r2.float()).to(input.dtype)


def _has_rotary_layout(shape: tuple[int, ...], table: tuple[int, ...], mode: str) -> bool:
    """Whether BNSD, BSND or SBND has this input together with these cosines.

    Cosines always have S and D; they may leave out N, and B and N; in half mode none need be left out.
    """
    if mode not in ("half", "interleave"):
        raise RuntimeError(f"npu_rotary_mul: rotary_mode must be half or interleave, got {mode!r}")
    for layout in ("BNSD", "BSND", "SBND"):
        sizes = dict(zip(layout, shape, strict=True))
        if mode == "half":
            fits, present = sizes["B"] < 1000 and sizes["N"] < 1000, ("SD", "BSD", "BNSD")
        else:
            fits, present = sizes["B"] * sizes["N"] < 1000, ("SD",)
        allowed = [tuple(sizes[axis] if axis in axes else 1 for axis in layout) for axes in present]
        if fits and table in allowed:
            return True
    return False


KERNELS: dict[str, Callable] = {
    kernel.__name__: kernel
    for kernel in (
        npu_rms_norm,
        npu_add_rms_norm,
        npu_layer_norm_eval,
        npu_swiglu,
        npu_geglu,
        npu_fast_gelu,
        npu_gelu,
        npu_rotary_mul,
        npu_fusion_attention,
        npu_fusion_attention_v3,
        npu_prompt_flash_attention,
        npu_dynamic_quant,
        npu_quant_matmul,
        npu_rotate_quant,
    )
}
"""By the name of the operator in torch.ops.npu."""
