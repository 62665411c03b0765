"""Photographs with edits of which everything is known: motion, mask and right result.

The photographs are those that scikit-image installs. What an image model does to all of an image is imitated: contrast
and colours drift, details are blurred, there is noise, and the file is a JPEG. Images are arrays [H, W, 3] in [0, 1].
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from deepgen_npu.edits.registration import Motion


PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "rocket.jpg", "coffee.png", "motorcycle_left.png", "camera.png")
HARD = {"drift": 0.12, "blur": 0.8, "noise": 3, "quality": 90}
"""For `redrawn`: colours that are harder to see through than those of most edits."""

ROOM = 32
"""Pixels of a photograph that lie outside of what is cut from it, on both sides together: content comes in there."""


Pair = tuple[np.ndarray, np.ndarray]
"""A photograph, and another one of the same size for what is replaced."""


def pairs(count: int = len(PHOTOGRAPHS)) -> Iterator[Pair]:
    """The first so many of `PHOTOGRAPHS`, each with its successor."""
    for number, name in enumerate(PHOTOGRAPHS[:count]):
        photo = photograph(name)
        yield photo, resized(photograph(PHOTOGRAPHS[(number + 1) % len(PHOTOGRAPHS)]), photo.shape[:2])


def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`."""
    package = importlib.util.find_spec("skimage")
    assert package is not None and package.origin is not None, "scikit-image is not installed"
    return np.asarray(Image.open(Path(package.origin).parent / "data" / name).convert("RGB"), np.float64) / 255


def size_to_cut(photo: np.ndarray, height: int = 448, width: int = 512) -> tuple[int, int]:
    """At most, in multiples of 32 that leave `ROOM`."""
    return min(height, photo.shape[0] - ROOM) // 32 * 32, min(width, photo.shape[1] - ROOM) // 32 * 32


def cut(photo: np.ndarray, size: tuple[int, int], motion: Motion | None = None) -> np.ndarray:
    """The middle of a photograph, with its content moved, by splines of order 5.

    Neither ``roll`` nor PyTorch's bicubic: content must come in at the edges, and a test must not have the error that
    it looks for.
    """
    motion = motion or Motion()
    sides = list(zip(size, photo.shape[:2], motion.shift, motion.scale, strict=True))
    slopes = [1 / (1 + scale) for *_, scale in sides]
    offsets: Any = [  # SciPy takes one for each axis; its annotation says float
        (scale * (side - 1) / 2 - shift) / (1 + scale) + (of_photo - side) / 2
        for side, of_photo, shift, scale in sides
    ]
    channels = [
        ndimage.affine_transform(photo[..., one], slopes, offsets, size, order=5, mode="reflect") for one in range(3)
    ]
    return np.stack(channels, -1).clip(0, 1)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A whole image at a size."""
    return np.asarray(Image.fromarray(levels(image)).resize(size[::-1]), np.float64) / 255


def levels(image: np.ndarray) -> np.ndarray:
    """In 8 bits, rounded."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def tensor(image: np.ndarray) -> Tensor:
    """[3, H, W] in float32."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()


def distance(found: Motion, true: Motion, size: tuple[int, int]) -> float:
    """Mean error of the place of a pixel, in pixels."""
    down, right = np.meshgrid(*(np.linspace(-0.5, 0.5, 9) * (side - 1) for side in size), indexing="ij")
    errors = [
        found.shift[axis] - true.shift[axis] + (found.scale[axis] - true.scale[axis]) * place
        for axis, place in enumerate((down, right))
    ]
    return float(np.hypot(*errors).mean())


def rectangle(size: tuple[int, int], part: float, rng: np.random.Generator) -> np.ndarray:
    """A mask [H, W] with that part of the image, somewhere in it."""
    height, width = (round(side * part**0.5) for side in size)
    top, left = int(rng.integers(0, size[0] - height + 1)), int(rng.integers(0, size[1] - width + 1))
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


LOCAL: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "replaced": lambda image, other: other,
    "recoloured": lambda image, other: image[..., [2, 0, 1]] * [1.1, 0.6, 1],
    "brightened": lambda image, other: image * 0.6 + 0.4,
    "painted": lambda image, other: np.broadcast_to([0.9, 0.1, 0.2], image.shape),
}
"""What happens under a mask; the second is another photograph."""


def edited_under(mask: np.ndarray, image: np.ndarray, kind: str, other: np.ndarray) -> np.ndarray:
    """An edit of `LOCAL` under a mask."""
    return np.where(mask[..., None], LOCAL[kind](image, other), image).clip(0, 1)


def moved(image: np.ndarray, mask: np.ndarray, down: int, right: int) -> np.ndarray:
    """What is under a mask moved by whole pixels; what it leaves is filled from beside it."""
    shifted = np.roll(image, (down, right), (0, 1))
    return np.where(np.roll(mask, (down, right), (0, 1))[..., None], shifted, image)


def _sketch(image: np.ndarray) -> np.ndarray:
    grey = image.mean(-1)
    lines = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    return np.repeat((1 - 2 * ndimage.gaussian_filter(lines, 0.7)).clip(0, 1)[..., None], 3, -1)


def _poster(image: np.ndarray) -> np.ndarray:
    smooth = Image.fromarray(levels(image)).filter(ImageFilter.MedianFilter(9))
    return (np.asarray(smooth, np.float64) / 255 * 3).round() / 3


GLOBAL: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "night": lambda image, other: (image * 0.4) ** 1.6,
    "warm filter": lambda image, other: image * [1.3, 1, 0.6],
    "snow and fog": lambda image, other: image * 0.5 + 0.48,
    "black and white": lambda image, other: np.repeat(image.mean(-1, keepdims=True), 3, -1),
    "poster": lambda image, other: _poster(image),
    "sketch": lambda image, other: _sketch(image),
    "another image": lambda image, other: other,
}
"""Edits of the whole image; the second is another photograph."""


def redrawn(
    image: np.ndarray,
    rng: np.random.Generator,
    drift: float = 0.04,
    blur: float = 0.9,
    noise: float = 2,
    quality: int = 92,
) -> np.ndarray:
    """As an image model draws what it leaves as it is.

    Args:
        image: What it draws.
        rng: Of drift and noise.
        drift: Largest change of a channel, as a part; its offset is up to a quarter of that.
        blur: Sigma in pixels.
        noise: Its deviation, in levels of 8 bits.
        quality: Of the JPEG.
    """
    image = image * (1 + rng.uniform(-drift, drift, 3)) + rng.uniform(-drift, drift, 3) / 4
    image = ndimage.gaussian_filter(image, (blur, blur, 0)) + rng.normal(0, noise / 255, image.shape)
    file = io.BytesIO()
    Image.fromarray(levels(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float64) / 255
