"""Edits that keep the rest: of whole images, and of the regions of a mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..deepgen_npu.edits.fitting import Fit
from ..deepgen_npu.edits.masks import resized
from ..deepgen_npu.edits.region import Region, plan
from ..deepgen_npu.edits.run import EditedImage, Result, edit_regions
from . import stages
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


def padded(images: Sequence[Image.Image], fit: Fit) -> list[Image.Image]:
    """Images padded to the size that is drawn, each as its own shape needs it."""
    return [Fit.padded(one.height, one.width, fit.height, fit.width).apply(one) for one in images]


@dataclass(frozen=True)
class Settings:
    """What all edits of a node have in common: widgets of DeepGen Edit Image."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    cfg: float


def edit_whole(
    model: LazyPipeline, groups: list[list[Image.Image]], image: Tensor, fit: Fit, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Edit images, and keep what the edits left alone.

    Args:
        model: The loader's output.
        groups: For each image, itself and further references.
        image: IMAGE [b, H, W, C].
        fit: How the images lie in what the model draws.
        settings: See there.

    Returns:
        IMAGE [b, H, W, 3 or 4] and MASK [b, H, W].
    """
    region = Region.whole(image.shape[1], image.shape[2], fit, squares=pixel_size(model.sizes) > 1)
    shown = [[fit.apply(group[0]), *padded(group[1:], fit)] for group in groups]
    drawn = _draw(model, shown, fit, settings)
    edits = []
    for pixels, (seen, *_), edit in zip(image, shown, drawn, strict=True):
        result = Result.of(pixels.permute(2, 0, 1))
        result.add(region, seen, edit, None, keep_unchanged=True)
        edits.append(result.finish())
    return _output(edits, image)


def edit_masked(
    model: LazyPipeline,
    groups: list[list[Image.Image]],
    image: Tensor,
    masks: Tensor,
    size: tuple[int, int] | None,
    keep_unchanged: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Edit the regions of a mask, one after the other.

    Args:
        model: The loader's output.
        groups: For each image, itself and further references.
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
    for place, (pixels, mask, regions, group) in enumerate(zip(image, masks, plans, groups, strict=True)):

        def draw(shown: Sequence[Image.Image], height: int, width: int, place=place, others=group[1:]) -> Tensor:
            fit = Fit.stretched(height, width)
            references = [[one, *padded(others, fit)] for one in shown]
            return _draw(model, references, fit, settings, place, callback)

        edits += edit_regions(pixels.permute(2, 0, 1), regions, draw, mask, keep_unchanged)
    return _output(edits, image)


def _draw(
    model: LazyPipeline,
    groups: list[list[Image.Image]],
    fit: Fit,
    settings: Settings,
    place: int | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Edits [b, 3, h, w] in [0, 1], in pixels of the model; ``place`` and ``callback`` as for `stages.sample`."""
    texts = settings.prompt, settings.negative_prompt
    conditionings = stages.encode(model, *texts, groups, fit.height, fit.width)
    latent = stages.sample(
        model, conditionings, settings.seed, settings.steps, settings.cfg, place=place, callback=callback
    )
    return stages.decode_pixels(model, latent)


def _output(edits: Sequence[EditedImage], image: Tensor) -> tuple[Tensor, Tensor]:
    """IMAGE and MASK, on the device of the input."""
    for number, edit in enumerate(edits, 1):
        which = f"image {number} of {len(edits)}: " if len(edits) > 1 else ""
        logger.info("DeepGen: %s%s.", which, edit.kept)
        if not edit.kept.regions:
            logger.info("DeepGen: paint what may change, in the mask editor of Load Image.")
    images = torch.stack([edit.image.permute(1, 2, 0) for edit in edits])
    return images, torch.stack([edit.change_mask for edit in edits]).to(image.device)
