"""IMAGE tensors to PIL and back, and the sizes at which images are drawn and shown.

The sizes that a user names are DeepGen 1.0's; a checkpoint that was trained smaller draws at a scale of its own. With
the demo checkpoint, trained at 64 x 64, an image of 512 x 512 is drawn at 64 x 64 and every pixel of it is shown as
8 x 8. So the same workflow runs with either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deepgen_npu.checks import must_be
from ..deepgen_npu.edits.fitting import Fit
from ..deepgen_npu.sizes import TRAINED_SIDE
from .check_tensors import one_or
from .names import CUSTOM, FOLLOW, PADDED, RESTORE


if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..deepgen_npu.sizes import SizeRules


def to_pil(image: Tensor) -> list[Image.Image]:
    """An IMAGE batch [b, H, W, C] in [0, 1], C = 1, 3 or 4, as b PIL images (see `images.to_pil` of the library)."""
    from ..deepgen_npu import images

    return [images.to_pil(pixels.permute(2, 0, 1)) for pixels in image]


def to_image(pixels: Tensor) -> Tensor:
    """[b, 3, H, W] in [0, 1] as an IMAGE batch [b, H, W, 3] (NCHW to BHWC)."""
    return pixels.permute(0, 2, 3, 1).contiguous()


def reference_groups(**images: Tensor | None) -> list[list[Image.Image]]:
    """The references of each image of a batch.

    Args:
        images: IMAGE tensors [b, H, W, C] or None by input name; the first sets the batch.

    Raises:
        ValueError: When a further input has neither one image nor the batch size of the first.
    """
    given = {name: image for name, image in images.items() if image is not None}
    if not given:
        return [[]]
    (first, batch), *others = [(name, len(image)) for name, image in given.items()]
    for name, count in others:
        if count not in (1, batch):
            raise ValueError(f"{name} has {count} images but {first} has {batch}: use {one_or(batch)}.")
    batches = [to_pil(image) for image in given.values()]
    return [[each[min(index, len(each) - 1)] for each in batches] for index in range(batch)]


def pixel_size(sizes: SizeRules) -> int:
    """Side of the square that shows one pixel of the model: 1 for DeepGen 1.0."""
    return max(1, TRAINED_SIDE // sizes.trained_side)


def drawing_size(sizes: SizeRules, height: int, width: int, editing: bool) -> tuple[int, int]:
    """(height, width) at which the model draws an image of the size that was asked for.

    Args:
        sizes: Of the checkpoint.
        height: Of the image that is shown, in pixels.
        width: Of the image that is shown, in pixels.
        editing: Whether there are references.

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
            raise ValueError(must_be(name, f"at most {longest * scale} with this model", side))
        sides.append(drawn)
    return sides[0], sides[1]


def editing_fit(
    sizes: SizeRules, image: Tensor, size_mode: str, height: int, width: int
) -> tuple[Fit, tuple[int, int]]:
    """The sizes of an edit in one of the size modes.

    Args:
        sizes: Of the checkpoint.
        image: The IMAGE [b, H, W, C] to edit.
        size_mode: See `names`.
        height: In pixels, for "width and height" only.
        width: In pixels, for "width and height" only.

    Returns:
        How the image lies in what the model draws, and (height, width) at which it is shown.

    Raises:
        ValueError: For another size mode, and for sides that the model cannot draw.
    """
    given, scale = (image.shape[1], image.shape[2]), pixel_size(sizes)
    if size_mode == CUSTOM:
        return Fit.stretched(*drawing_size(sizes, height, width, editing=True)), (height, width)
    if size_mode == PADDED:
        fit = Fit.padded(*given, *sizes.least_padding(*given))
        return fit, (fit.rows * scale, fit.columns * scale)
    if size_mode in (FOLLOW, RESTORE):
        drawn = sizes.match_aspect(*given)
        return Fit.stretched(*drawn), given if size_mode == RESTORE else (drawn[0] * scale, drawn[1] * scale)
    modes = ", ".join(repr(mode) for mode in (PADDED, FOLLOW, CUSTOM, RESTORE))
    raise ValueError(must_be("size_mode", f"one of {modes}", size_mode))


def enlarge(pixels: Tensor, times: int) -> Tensor:
    """Images [b, 3, h, w] with each pixel as a square of ``times`` x ``times``."""
    return pixels.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1) if times > 1 else pixels


def shrink(pixels: Tensor, times: int) -> Tensor:
    """The opposite of `enlarge`: the mean of each square."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(pixels, times) if times > 1 else pixels


def resize(pixels: Tensor, height: int, width: int, sizes: SizeRules) -> Tensor:
    """Images [b, 3, h, w] in [0, 1] at another size.

    Smoothly, except for a model whose pixels are shown as squares.

    Args:
        pixels: The images.
        height: To bring them to, in pixels.
        width: To bring them to, in pixels.
        sizes: Of the checkpoint that made them.
    """
    from torch.nn.functional import interpolate

    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    if pixel_size(sizes) > 1:
        return interpolate(pixels, size=(height, width), mode="nearest")
    return interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
