"""The sizes that a user names are DeepGen 1.0's; a checkpoint that was trained smaller draws at a scale of its own.

With the demo checkpoint, trained at 64 x 64, a picture of 512 x 512 is drawn at 64 x 64 and every pixel of it is
shown as 8 x 8. So the same workflow runs with either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deepgen_npu.sizes import TRAINED_SIDE
from .inputs import CUSTOM, FOLLOW, RESTORE


if TYPE_CHECKING:
    from torch import Tensor

    from ..deepgen_npu.sizes import SizeRules


def pixel_size(sizes: SizeRules) -> int:
    """Side of the square that shows one pixel of the model: 1 for DeepGen 1.0."""
    return max(1, TRAINED_SIDE // sizes.trained_side)


def drawing_size(sizes: SizeRules, height: int, width: int, editing: bool) -> tuple[int, int]:
    """(height, width) at which the model draws a picture of the size that was asked for.

    Raises:
        ValueError: When the model cannot draw it, in the terms of the node's inputs.
    """
    scale = pixel_size(sizes)
    if scale == 1:
        return sizes.check(height, width, editing)
    multiple = sizes.multiple(editing)
    longest = sizes.longest_side // multiple * multiple
    sides = []
    for name, side in (("height", height), ("width", width)):
        drawn = max(round(side / scale / multiple), 1) * multiple
        if drawn > longest:
            raise ValueError(f"{name} is {side}; with this model at most {longest * scale} is wanted.")
        sides.append(drawn)
    return sides[0], sides[1]


def editing_size(sizes: SizeRules, image: Tensor, size_mode: str, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which the model draws an edit of an IMAGE [b, H, W, C] in one of the size modes."""
    if size_mode == CUSTOM:
        return drawing_size(sizes, height, width, editing=True)
    if size_mode in (FOLLOW, RESTORE):
        return sizes.follow(image.shape[1], image.shape[2])
    raise ValueError(f"size_mode is {size_mode!r}; {FOLLOW!r}, {CUSTOM!r} or {RESTORE!r} is wanted.")


def enlarge(pixels: Tensor, times: int) -> Tensor:
    """Pictures [b, 3, h, w] with each pixel shown as a square."""
    return pixels.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1) if times > 1 else pixels


def shrink(pixels: Tensor, times: int) -> Tensor:
    """The opposite of `enlarge`: the mean of each square."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(pixels, times) if times > 1 else pixels


def resize(pixels: Tensor, height: int, width: int, sizes: SizeRules) -> Tensor:
    """Pictures [b, 3, h, w] in [0, 1] at another size: smoothly, but for a model whose pixels are shown as squares."""
    from torch.nn.functional import interpolate

    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    if pixel_size(sizes) > 1:
        return interpolate(pixels, size=(height, width), mode="nearest")
    return interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
