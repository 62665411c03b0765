"""Edits that keep the rest: of whole images, and of the regions of a mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..deepgen_npu.edits.fitting import Fit, padded
from ..deepgen_npu.edits.masks import resized
from ..deepgen_npu.edits.region import Region, plan
from ..deepgen_npu.edits.run import edit_regions, edited
from . import stages
from .edited import to_output
from .images import pixel_size
from .progress import step_callback


if TYPE_CHECKING:
    from PIL import Image

    from .lazy_pipeline import LazyPipeline
    from .progress import StepCallback

logger = logging.getLogger(__name__)


def paired(image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """As many images as masks, of the same size: one of either goes with all of the other.

    Args:
        image: IMAGE [b, H, W, C].
        masks: [m, h, w].

    Returns:
        [n, H, W, C] and [n, H, W].

    Raises:
        ValueError: For other numbers.
    """
    images, count = len(image), len(masks)
    if images != count and 1 not in (images, count):
        raise ValueError(f"mask has {count} masks but image has {images} images: use 1, or as many.")
    total = max(images, count)
    masks = resized(masks.cpu(), *image.shape[1:3]).expand(total, -1, -1)
    return image.expand(total, -1, -1, -1), masks


@dataclass(frozen=True)
class Settings:
    """What all edits of a node have in common: widgets of DeepGen Edit Image."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    cfg: float


def edit_whole(
    model: LazyPipeline, others: list[list[Image.Image]], image: Tensor, fit: Fit, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Edit images, and keep what the edits left alone.

    Args:
        model: The loader's output.
        others: For each image, further references.
        image: IMAGE [b, H, W, C].
        fit: How the images lie in what the model draws.
        settings: See there.

    Returns:
        IMAGE [b, H, W, 3 or 4] and MASK [b, H, W].
    """
    region = Region.whole(image.shape[1], image.shape[2], fit, squares=pixel_size(model.sizes) > 1)
    pictures = list(image.permute(0, 3, 1, 2))
    shown = [region.shown(pixels) for pixels in pictures]
    further = [padded(each, fit.height, fit.width) for each in others]
    groups = [[seen, *each] for seen, each in zip(shown, further, strict=True)]
    drawn = _draw(model, groups, fit.height, fit.width, settings)
    found = zip(pictures, shown, drawn, strict=True)
    edits = [edited(region, pixels, seen, edit, None, keep_unchanged=True) for pixels, seen, edit in found]
    return to_output(edits, image.device)


def edit_masked(
    model: LazyPipeline,
    others: list[list[Image.Image]],
    image: Tensor,
    masks: Tensor,
    size: tuple[int, int] | None,
    keep_unchanged: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Edit the regions of a mask, one after the other.

    Args:
        model: The loader's output.
        others: For each image, further references.
        image: IMAGE [b, H, W, C].
        masks: [b, H, W].
        size: (height, width) of the model at which each region is drawn; None for what suits it.
        keep_unchanged: Whether what the edit left alone stays as it is inside of the mask, too.
        settings: See there.

    Returns:
        As `edit_whole`.
    """
    plans = [plan(mask, model.sizes, size, pixel_size(model.sizes)) for mask in masks]
    runs = sum(len(regions) for regions in plans)
    if runs > len(plans):
        logger.info("DeepGen: the mask has %d regions, which are edited one after the other.", runs)
    callback = step_callback(model.patcher, settings.steps, runs) if runs else None
    edits = []
    for place, (pixels, mask, regions, further) in enumerate(zip(image, masks, plans, others, strict=True)):

        def draw(shown: Sequence[Image.Image], height: int, width: int, place=place, further=further) -> Tensor:
            groups = [[one, *padded(further, height, width)] for one in shown]
            return _draw(model, groups, height, width, settings, place, callback)

        edits += edit_regions(pixels.permute(2, 0, 1), regions, draw, mask, keep_unchanged)
    return to_output(edits, image.device)


def _draw(
    model: LazyPipeline,
    groups: list[list[Image.Image]],
    height: int,
    width: int,
    settings: Settings,
    place: int | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Edits [b, 3, h, w] in [0, 1], in pixels of the model; ``place`` and ``callback`` as for `stages.sample`."""
    texts = settings.prompt, settings.negative_prompt
    conditionings = stages.encode(model, *texts, groups, height, width)
    latent = stages.sample(
        model, conditionings, settings.seed, settings.steps, settings.cfg, place=place, callback=callback
    )
    return stages.decode_pixels(model, latent)
