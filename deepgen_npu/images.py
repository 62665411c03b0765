"""Images in and out: PIL to tensors and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .checks import Named, must_be, type_of
from .rgb import to_rgb


def as_list(image: object) -> list[Image.Image]:
    """One image, several or none, as a list.

    Raises:
        TypeError: For anything that is not a PIL image.
        ValueError: For an empty list.
    """
    if image is None:
        return []
    images = list(image) if isinstance(image, Sequence) and not isinstance(image, (str, bytes)) else [image]
    if not images:
        advice = "Pass None to generate without a reference."
        raise ValueError(must_be("image", "a PIL image or a list of them", Named("an empty list"), advice=advice))
    for one in images:
        if not isinstance(one, Image.Image):
            found = type_of(one) if one is image else Named(f"a list with {type_of(one)}")
            raise TypeError(must_be("image", "a PIL image or a list of them", found))
    return images


def to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """A reference as the model sees it.

    It is resized to the output's size without keeping its aspect ratio, with PIL's default filter (bicubic).

    Returns:
        [3, height, width] float32 in [-1, 1].
    """
    resized = to_rgb(image).resize((width, height))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 * 2 - 1


def to_pil(pixels: Tensor) -> Image.Image:
    """Pixels [C, H, W] in [0, 1], C = 1, 3 or 4, as a PIL image.

    Levels are rounded down, as SaveImage of ComfyUI does: editing an image straight away and editing it after it was
    saved and loaded again give the same result.
    """
    levels = (pixels.float().clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def unit_pixels(image: Image.Image) -> Tensor:
    """A PIL image as [3, H, W] in [0, 1]: levels of 8 bits, from which `in_form` makes the same levels again."""
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).float() / 255


def from_pixels(pixels: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Decoded images in the requested form.

    Args:
        pixels: [b, 3, H, W], about [-1, 1].
        output_type: ``pt`` for [b, 3, H, W] float32 in [0, 1] on the CPU, ``np`` for the same as
            [b, H, W, 3], ``pil`` for a list of PIL images.
    """
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).cpu()
    return in_form(pixels, output_type)


def in_form(pixels: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Images [b, 3, H, W] in [0, 1] on the CPU as ``pt``, ``np`` or ``pil`` (see `from_pixels`)."""
    if output_type == "pt":
        return pixels
    array = pixels.permute(0, 2, 3, 1).numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(one) for one in (array * 255).round().astype(np.uint8)]
