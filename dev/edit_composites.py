"""Composites of synthetic edits, for `dev.edit_tables`: seams, levels that change, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from deepgen_npu.edits.change import compare, find_change
from deepgen_npu.edits.composite import FEATHER, blended, carried, enlarged, outward
from deepgen_npu.edits.fitting import Fit
from deepgen_npu.edits.region import Region
from deepgen_npu.edits.registration import Motion, register
from deepgen_npu.edits.run import EditedImage, edit_regions
from dev.synthetic_edits import (
    LOCAL,
    Pair,
    cut,
    edited_under,
    levels,
    photograph,
    rectangle,
    redrawn,
    resized,
    size_to_cut,
    tensor,
)


SMALL = Motion((1.3, -2.6))
"""Of the edits."""

TIMES = 1.5
"""Sides of the photograph, in sides of the drawn image, for seams."""

WAYS = ("not registered", "registered", "registered, colour carried in")


def zoomed(photo: np.ndarray, size: tuple[int, int], times: float) -> np.ndarray:
    """The middle of a photograph, as `cut`, at so many times the pixels."""
    large = tuple(round(side * times) for side in size)
    offsets: Any = [  # SciPy takes one for each axis; its annotation says float
        (1 / times - 1) / 2 + (of_photo - side) / 2 for of_photo, side in zip(photo.shape[:2], size, strict=True)
    ]
    channels = [
        ndimage.affine_transform(photo[..., one], (1 / times,) * 2, offsets, large, order=5, mode="reflect")
        for one in range(3)
    ]
    return np.stack(channels, -1).clip(0, 1)


def seams(pairs: Iterable[Pair]) -> dict[str, list[float]]:
    """Steps along the mask's edge by kind, for each of `WAYS`: means of all photographs."""
    found: dict[str, list[list[float]]] = {}
    for photo, other in pairs:
        size, rng = size_to_cut(photo), np.random.default_rng(4)
        mask = np.zeros(photo.shape[:2], bool)
        top, left = ((of_photo - side) // 2 for of_photo, side in zip(mask.shape, size, strict=True))
        mask[top : top + size[0], left : left + size[1]] = rectangle(size, 0.15, rng)
        for kind in LOCAL:
            edited = edited_under(mask, photo, kind, other)
            image, right = zoomed(photo, size, TIMES), zoomed(edited, size, TIMES)
            seen, drawn = tensor(cut(photo, size)), tensor(redrawn(cut(edited, size, SMALL), rng))
            ways = composites(tensor(image), seen, drawn)
            found.setdefault(kind, []).append([seam(composite, right, alpha) for composite, alpha in ways])
    return {kind: np.mean(some, axis=0).tolist() for kind, some in found.items()}


def composites(image: Tensor, seen: Tensor, drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """An edit put back in three ways, under the same mask; and alpha."""
    height, width = image.shape[-2:]
    compared = compare(seen, drawn)
    registration, change = compared.registration, compared.change
    alpha = enlarged(outward(change.mask, FEATHER)[None], Motion(), height, width)[0].clamp(0, 1)
    aligned = registration.motion.undone(drawn)
    field = enlarged(carried(seen, aligned, change.mask) - aligned, Motion(), height, width)
    for motion, colours in ((Motion(), 0), (registration.motion, 0), (registration.motion, field)):
        yield blended(image, (enlarged(drawn, motion, height, width) + colours).clamp(0, 1), alpha), alpha


def seam(composite: Tensor, right: np.ndarray, alpha: Tensor) -> float:
    """The step along the edge of a mask, in levels a pixel."""
    error = 255 * (composite.numpy() - right.transpose(2, 0, 1))
    smooth = ndimage.gaussian_filter(error, (0, 3, 3))
    steps = np.sqrt(sum(np.square(one).sum(0) for one in np.gradient(smooth, axis=(1, 2))) / 3)
    mask = (alpha > 0.5).numpy()
    inside = ndimage.binary_erosion(mask, iterations=12, border_value=1)
    near = ndimage.binary_dilation(mask, iterations=12) & np.logical_not(inside)
    return float(steps[near].mean())


def put_back(image: Tensor, drawn: Tensor, fit: Fit | None = None) -> EditedImage:
    """What the library makes of an edit that was drawn, with ``keep_unchanged``."""
    height, width = image.shape[-2:]
    region = Region.whole(height, width, fit or Fit.stretched(drawn.shape[-2], drawn.shape[-1]))
    return edit_regions(image, [region], lambda shown, height, width: drawn[None], keep_unchanged=True)[0]


def levels_outside(pairs: Iterable[Pair]) -> dict[str, tuple[int, int]]:
    """Pixels outside of the change mask, and how many of them have another level in a PNG."""
    found: dict[str, list[tuple[int, int]]] = {}
    for photo, other in pairs:
        size, rng = size_to_cut(photo), np.random.default_rng(5)
        first = image = tensor(levels(cut(photo, size)) / 255)
        replacement, untouched = resized(other, size), torch.ones(size, dtype=torch.bool)
        for number in range(5):
            shown = image.permute(1, 2, 0).double().numpy()
            edit = edited_under(rectangle(size, 0.05, rng), shown, list(LOCAL)[number % 4], replacement)
            drawn = tensor(redrawn(edit, rng))
            result = put_back(image, drawn)
            untouched &= result.change_mask == 0
            if number == 0:
                found.setdefault("the edit itself", []).append(changed_levels(drawn, first, untouched))
                found.setdefault("put back", []).append(changed_levels(result.image, first, untouched))
            image = result.image
        found.setdefault("five edits in a row, each put back", []).append(changed_levels(image, first, untouched))
    return {name: (sum(one for one, _ in some), sum(one for _, one in some)) for name, some in found.items()}


def changed_levels(image: Tensor, before: Tensor, where: Tensor) -> tuple[int, int]:
    """How many pixels there are, and how many of them have another level, as ComfyUI saves images: cut off."""
    one, other = ((255 * values).clamp(0, 255).to(torch.uint8) for values in (image, before))
    return int(where.sum()), int(((one != other).any(0) & where).sum())


def times() -> Iterator[tuple[tuple[int, int], tuple[int, int], list[float]]]:
    """Size of an image, size at which it is drawn, and seconds: registration, change mask, all of `put_back`."""
    photo, rng = photograph("astronaut.png"), np.random.default_rng(6)
    for size in ((512, 512), (3000, 4000)):
        fit = Fit.padded(*size, 512, 512) if size[0] == size[1] else Fit.padded(*size, 448, 608)
        inner = fit.rows, fit.columns
        whole = resized(photo, (inner[0] + 32, inner[1] + 32))
        mask, other = rectangle(inner, 0.1, rng), resized(photograph("coffee.png"), inner)
        seen, edit = tensor(cut(whole, inner)), edited_under(mask, cut(whole, inner, SMALL), "replaced", other)
        inside = tensor(redrawn(edit, rng))
        drawn = torch.zeros(3, fit.height, fit.width)
        fit.content(drawn).copy_(inside)
        image = tensor(resized(cut(whole, inner), size))
        seconds = [
            least_seconds(register, seen, inside),
            least_seconds(find_change, seen, register(seen, inside).motion.undone(inside)),
            least_seconds(put_back, image, drawn, fit),
        ]
        yield size, (fit.height, fit.width), seconds


def least_seconds(function: Callable[..., object], *arguments: object, runs: int = 3) -> float:
    """Of so many runs."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        function(*arguments)
        seconds.append(time.process_time() - start)
    return min(seconds)
