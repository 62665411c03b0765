"""How far apart two pictures, or two runs' latents, are: the measures of the adaptation report, and SSIM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


HEADER = (
    "| Comparison | MSE | Largest difference | Mean difference | Identical | PSNR | SSIM |",
    "|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Difference:
    """How far apart two pictures, or two tensors of latents, are.

    Attributes:
        mse: Mean squared error; of pictures on the scale of 0 to 255.
        largest: Largest absolute difference, on the same scale.
        mean: Mean absolute difference, on the same scale.
        identical: To the bit.
        psnr: Peak signal-to-noise ratio [dB] of pictures; infinite where they are identical. None for latents.
        ssim: Structural similarity of pictures (Wang et al. 2004, by scikit-image). None for latents.
    """

    mse: float
    largest: float
    mean: float
    identical: bool
    psnr: float | None = None
    ssim: float | None = None


def require_scikit_image() -> None:
    """Call it before anything slow.

    Raises:
        ValueError: When it is not installed.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise ValueError(f"SSIM is computed by scikit-image ({error}): pip install scikit-image") from None


def compare_pictures(first: Image.Image, second: Image.Image) -> Difference:
    """Compare two pictures as 8-bit RGB.

    Raises:
        ValueError: When their sizes differ, or when they are too small for SSIM.
    """
    if first.size != second.size:
        raise ValueError(
            f"The pictures are {first.width} x {first.height} and {second.width} x {second.height} pixels; "
            "pictures of one size are wanted."
        )
    window = 7  # scikit-image's own, in pixels
    if min(first.size) < window:
        raise ValueError(
            f"The pictures are {first.width} x {first.height} pixels; SSIM compares windows of {window} x {window}, "
            "so pictures of at least that size are wanted."
        )
    from skimage.metrics import structural_similarity

    one, other = (np.asarray(picture.convert("RGB")).astype(np.float64) for picture in (first, second))
    error = np.abs(one - other)
    mse = float((error**2).mean())
    return Difference(
        mse=mse,
        largest=float(error.max()),
        mean=float(error.mean()),
        identical=mse == 0,
        psnr=math.inf if mse == 0 else 10 * math.log10(255**2 / mse),
        ssim=float(structural_similarity(one, other, channel_axis=2, data_range=255, win_size=window)),
    )


def compare_latents(first: Tensor, second: Tensor) -> Difference:
    """Compare final latents in float32; identical are those of one dtype with the same bits.

    Raises:
        ValueError: When their shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"The latents have the shapes {list(first.shape)} and {list(second.shape)}; one is wanted.")
    import torch  # pictures alone are compared without it

    first, second = first.cpu(), second.cpu()
    error = (first.float() - second.float()).abs()
    return Difference(
        mse=float(error.square().mean()),
        largest=float(error.max()),
        mean=float(error.mean()),
        identical=first.dtype == second.dtype and torch.equal(first, second),
    )


def as_markdown(rows: Mapping[str, Difference]) -> str:
    """A table with one row for each comparison."""
    return "\n".join([*HEADER, *(_row(name, difference) for name, difference in rows.items())])


def _row(name: str, difference: Difference) -> str:
    psnr, ssim = difference.psnr, difference.ssim
    cells = [
        name,
        f"{difference.mse:.6g}",
        f"{difference.largest:.6g}",
        f"{difference.mean:.6g}",
        "yes" if difference.identical else "no",
        "" if psnr is None else f"{psnr:.2f} dB" if psnr < math.inf else "infinite",
        "" if ssim is None else f"{ssim:.6f}",
    ]
    return f"| {' | '.join(cells)} |"
