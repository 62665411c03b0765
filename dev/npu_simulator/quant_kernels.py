"""Reference kernels of the operators that quantise and multiply in int8. Rules: Ascend's pages of the operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_floats, refuse


HALVES = (torch.float16, torch.bfloat16)
LARGEST = 127


def npu_dynamic_quant(
    input: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(int8, float32 scale of each row). A row of zeros has the scale 0."""
    name = "npu_dynamic_quant"
    check_floats(name, HALVES, input=input)
    refuse(name, smooth_scales=smooth_scales, group_index=group_index, dst_type=dst_type)
    if quant_mode != "pertoken" or dst_type_max != 0:
        raise RuntimeError(f"{name}: quant_mode {quant_mode!r} and dst_type_max {dst_type_max} are not implemented")
    if input.dim() < 2:
        raise RuntimeError(f"{name}: input must have 2 dimensions or more, got {tuple(input.shape)}")
    rows = input.float()
    scale = rows.abs().amax(-1) / LARGEST
    quotient = rows / torch.where(scale == 0, torch.ones_like(scale), scale)[..., None]
    return quotient.round().to(torch.int8), scale


def npu_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """[m, k] x [k, n] in integers, times a scale for each row and column, plus a bias."""
    name = "npu_quant_matmul"
    refuse(name, offset=offset, x1_dtype=x1_dtype, x2_dtype=x2_dtype, pertoken_scale_dtype=pertoken_scale_dtype)
    refuse(name, scale_dtype=scale_dtype, group_sizes=group_sizes, y_scale=y_scale)
    if x1.dtype != torch.int8 or x2.dtype != torch.int8:
        raise RuntimeError(f"{name}: x1 and x2 must be int8, got {x1.dtype} and {x2.dtype}")
    if x1.dim() != 2 or x2.dim() != 2 or x1.shape[1] != x2.shape[0] or not x1.numel() or not x2.numel():
        raise RuntimeError(f"{name}: x1 {tuple(x1.shape)} and x2 {tuple(x2.shape)} do not fit")
    if not x1.is_contiguous() or not (x2.is_contiguous() or x2.t().is_contiguous()):
        raise RuntimeError(f"{name}: x1 must be contiguous, and x2 or its transpose")
    columns = x2.shape[1]
    dtype = _HALF_BY_NUMBER.get(output_dtype) if isinstance(output_dtype, int) else output_dtype
    if dtype not in HALVES:
        raise RuntimeError(f"{name}: output_dtype must be float16 or bfloat16, got {output_dtype}")
    if scale.dtype != torch.float32 or tuple(scale.shape) not in ((1,), (columns,)):
        raise RuntimeError(f"{name}: scale must be float32 [1] or [{columns}], got {scale.dtype} {tuple(scale.shape)}")
    if pertoken_scale is None or pertoken_scale.dtype != torch.float32 or pertoken_scale.shape != x1.shape[:1]:
        raise RuntimeError(f"{name}: pertoken_scale must be float32 [{len(x1)}]")
    # In float64, which represents every sum of int8 products.
    result = (x1.double() @ x2.double()).float() * scale * pertoken_scale[:, None]
    if bias is not None:
        if bias.dtype not in (dtype, torch.float32) or tuple(bias.shape) != (columns,):
            raise RuntimeError(f"{name}: bias must be {dtype} or float32 [{columns}], got {bias.dtype}")
        result = result + bias.float()
    return result.to(dtype)


def npu_rotate_quant(
    x: Tensor,
    rotation: Tensor,
    *,
    alpha: Tensor | None = None,
    dst_dtype: int | None = None,
    axis: int = -1,
    round_mode: str = "rint",
    scale_alg: int = 0,
    dst_type_max: float = 0.0,
    transpose_y: bool = False,
) -> tuple[Tensor, Tensor]:
    """Groups of columns times a matrix [k, k], then as `npu_dynamic_quant`. For the 910B and 910C."""
    name = "npu_rotate_quant"
    check_floats(name, HALVES, x=x)
    refuse(name, alpha=alpha)
    if dst_dtype not in (None, _INT8):
        raise RuntimeError(f"{name}: dst_dtype must be int8, got {dst_dtype}")
    if (axis, round_mode, scale_alg, dst_type_max, transpose_y) != (-1, "rint", 0, 0.0, False):
        raise RuntimeError(f"{name}: only the defaults of its options are implemented")
    group = len(rotation)
    if rotation.dtype != x.dtype or rotation.shape != (group, group) or not 16 <= group <= 1024:
        raise RuntimeError(f"{name}: rotation must be {x.dtype} [k, k] with k from 16 to 1024")
    if x.dim() != 2 or not 128 <= x.shape[1] <= 16000 or x.shape[1] % group or x.shape[1] % 8:
        raise RuntimeError(f"{name}: x must be [m, n] with n from 128 to 16000, a multiple of {group} and of 8")
    rotated = (x.float().unflatten(-1, (-1, group)) @ rotation.float()).flatten(-2)
    return npu_dynamic_quant(rotated.to(x.dtype))


_INT8 = 1
_HALF_BY_NUMBER = {5: torch.float16, 15: torch.bfloat16}
"""PyTorch's numbers of dtypes, which the dispatcher makes of them."""
