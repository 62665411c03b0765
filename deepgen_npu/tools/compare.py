"""How much two images, or the latents of two runs, differ: the measures of the adaptation report, and SSIM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import checks
from ..formatting import command, format_size


if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


HEADER = (
    "| Comparison | MSE | Largest difference | Mean difference | Identical | PSNR | SSIM |",
    "|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Difference:
    """How much two images, or two tensors of latents, differ.

    Attributes:
        mse: Mean squared error; for images on the scale of 0 to 255.
        largest: Largest absolute difference, on the same scale.
        mean: Mean absolute difference, on the same scale.
        identical: Bit by bit.
        psnr: Peak signal-to-noise ratio [dB] of images; infinite where they are identical. None for latents.
        ssim: Structural similarity of images (Wang et al. 2004, by scikit-image). None for latents.
    """

    mse: float
    largest: float
    mean: float
    identical: bool
    psnr: float | None = None
    ssim: float | None = None


def require_scikit_image() -> None:
    """Check, before anything slow, that SSIM can be computed.

    Raises:
        ValueError: When it is not installed.
    """
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise ValueError(f"SSIM needs scikit-image ({error}):{command('pip install scikit-image')}") from None


def compare_images(first: Image.Image, second: Image.Image) -> Difference:
    """Compare two images as 8-bit RGB.

    Args:
        first: An image.
        second: One of the same size.

    Raises:
        ValueError: When their sizes differ, or when they are too small for SSIM.
    """
    if first.size != second.size:
        found = checks.Named(f"{format_size(*first.size)} and {format_size(*second.size)}")
        raise ValueError(checks.must("The images", "have the same size", found))
    window = 7  # pixels, the default of scikit-image
    if min(first.size) < window:
        requirement = f"be at least {format_size(window, window)} pixels, the window of SSIM"
        raise ValueError(checks.must("The images", requirement, checks.Named(format_size(*first.size))))
    from skimage.metrics import structural_similarity

    one, other = (np.asarray(image.convert("RGB")).astype(np.float64) for image in (first, second))
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
    """Compare final latents in float32. They are identical if both dtype and bits are.

    Args:
        first: Latents.
        second: Some of the same shape.

    Raises:
        ValueError: When their shapes differ.
    """
    if first.shape != second.shape:
        found = checks.Named(f"{list(first.shape)} and {list(second.shape)}")
        raise ValueError(checks.must("The latents", "have the same shape", found))
    import torch  # not needed to compare images

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
