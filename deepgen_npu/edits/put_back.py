"""The edit of a region put back into its image: compared with it, moved to where it belongs, and composited."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..images import unit_pixels
from .boxes import MARKED, Box
from .change import compare, scaled
from .composite import FEATHER, blended, carried, clean, enlarged, inward, is_soft, outward
from .filters import box_max
from .kept import EditedRegion
from .region import Region
from .registration import Motion


logger = logging.getLogger(__name__)

KNOWN_GROWTH = 8
"""By how many pixels of the drawn image a mask is grown before the unchanged part is taken for known."""

BAND = 1 << 20
"""Pixels that are composited at once: a large image needs no further copies of all of it."""


@dataclass(frozen=True)
class Findings:
    """What is to be done with an edit, all in pixels of the drawn image, padding cut off.

    Attributes:
        motion: Of the edit, to be undone.
        field: Colours to add to the edit, motion undone, [3, h, w]; None for none.
        changed: Where the edit changed something, with a feather around, [h, w]; None where all of it counts.
        found: For the report; without its box, and shift in pixels of the drawn image.
    """

    motion: Motion
    field: Tensor | None
    changed: Tensor | None
    found: EditedRegion


def put_back(
    region: Region,
    image: Tensor,
    shown: Image.Image,
    drawn: Tensor,
    mask: Tensor | None,
    keep_unchanged: bool,
) -> tuple[Tensor, EditedRegion]:
    """Put the edit of a region into the image, which is changed in place.

    Where the result is 0 nothing of the image changes, not even in the last bit.

    Args:
        region: What was edited.
        image: [C, H, W] in [0, 1] in any floating-point dtype, C = 3 or 4; the fourth channel stays.
        shown: What the model saw (`Region.shown`).
        drawn: The model's edit, [3, height, width] of `Region.fit` in [0, 1].
        mask: What may be changed, [H, W] of the image in [0, 1]; None for all.
        keep_unchanged: Whether what the edit left alone stays as it is.

    Returns:
        How much of each pixel of the box is the edit's, [h, w], and what to report.
    """
    box, fit = region.box, region.fit
    before = fit.content(unit_pixels(shown))
    after = fit.content(drawn.float().cpu())
    part = None if mask is None else region.mask(mask).float().cpu()
    known = None if mask is None else _reduced(box.cut(mask).float().cpu(), fit.rows, fit.columns)
    findings = _find(before, after, known, keep_unchanged)
    after = torch.where(torch.isfinite(after), after, before)  # NaN would spread to the pixels around
    alpha = None
    if part is not None:
        alpha = _of_mask(part, scaled(FEATHER, before.shape) * box.height / fit.rows)
    if findings.changed is not None:
        changed = _scaled_mask(findings.changed, box.height, box.width, region.squares)
        alpha = clean(changed if alpha is None else alpha * changed)
    if alpha is None:
        alpha = torch.ones(box.height, box.width)
    _composite(image, box, after, findings, alpha, region.squares)
    return alpha, _in_pixels(findings.found, region)


def _find(before: Tensor, after: Tensor, known: Tensor | None, keep_unchanged: bool) -> Findings:
    """Motion, colours and change of an edit; a plain edit where that fails, since nothing may lose it."""
    try:
        if not bool(torch.isfinite(after).all()):
            raise FloatingPointError("the edit has NaN or infinity")
        return _findings(before, after, known, keep_unchanged)
    except Exception as error:  # whatever it is, the edit is worth more
        logger.warning("The edit could not be compared with the image and is used as it is (%s).", error)
        return Findings(Motion(), None, None, EditedRegion(reason="failed"))


def _findings(before: Tensor, after: Tensor, known: Tensor | None, keep_unchanged: bool) -> Findings:
    compared = compare(before, after, known)
    registration, motion, change = compared.registration, compared.motion, compared.change
    (down, right), (taller, wider) = motion.shift, motion.scale
    found = EditedRegion(
        shift=(right, down),
        scale=(wider, taller),
        certain=registration.certain,
        reason=registration.reason,
        drift=change.drift,
        global_edit=change.is_global,
    )
    if change.is_global:
        # There is no unchanged rest whose colours could be carried in, nor one to be kept. A user's mask still counts.
        if known is None:
            found = replace(found, shift=(0.0, 0.0), scale=(0.0, 0.0))
            motion = Motion()
        return Findings(motion, None, None, found)
    touched = change.mask if known is None else torch.maximum(change.mask, known)
    field = carried(before, compared.aligned, touched) - compared.aligned
    changed = outward(change.mask, scaled(FEATHER, before.shape)) if keep_unchanged else None
    return Findings(motion, field, changed, found)


def _reduced(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [H, W] at the size of the drawn image, grown: where the edit may have changed something."""
    small = F.adaptive_max_pool2d(mask[None], (height, width))[0]
    growth = round(scaled(KNOWN_GROWTH, small.shape))
    return (box_max(small, 2 * growth + 1) >= MARKED).float()


def _of_mask(mask: Tensor, sigma: float) -> Tensor:
    """How much of the edit a mask [H, W] of the user lets through: exactly nothing outside of it.

    Args:
        mask: Of the user.
        sigma: Of the feather inside of it, in pixels; a soft mask has one of its own.
    """
    if is_soft(mask):
        return clean(torch.where(mask < MARKED, torch.zeros_like(mask), mask))
    return inward(mask, sigma)


def _scaled_mask(mask: Tensor, height: int, width: int, squares: bool) -> Tensor:
    """A mask [h, w] of the drawn image at the size of the image."""
    if squares:
        return F.interpolate(mask[None, None], (height, width), mode="nearest")[0, 0]
    smaller = height < mask.shape[-2] or width < mask.shape[-1]  # only then it matters, and it takes time
    return F.interpolate(mask[None, None], (height, width), mode="bilinear", antialias=smaller)[0, 0].clamp(0, 1)


def _composite(image: Tensor, box: Box, after: Tensor, findings: Findings, alpha: Tensor, squares: bool) -> None:
    """Blend the enlarged edit into the box of an image [C, H, W], band by band, where alpha [h, w] is not 0."""
    target = box.cut(image)[:3]
    motion, field = findings.motion, findings.field
    if squares and motion == Motion():
        after = after if field is None else after + field
        after, field = F.interpolate(after[None], alpha.shape, mode="nearest")[0], None
    elif after.shape[-2] > box.height or after.shape[-1] > box.width:
        # A small image was drawn larger: smooth it first, then its pixels are the image's.
        motion = motion.scaled(min(1.0, box.height / after.shape[-2]), min(1.0, box.width / after.shape[-1]))
        after = _smaller(after, box)
        field = None if field is None else _smaller(field, box)
    touched = torch.where((alpha > 0).any(1))[0]
    if not len(touched):
        return
    first, last = int(touched[0]), int(touched[-1]) + 1
    step = max(1, BAND // box.width)
    for top in range(first, last, step):
        rows = slice(top, min(top + step, last))
        edit = enlarged(after, motion, box.height, box.width, rows)
        if field is not None:
            edit = edit + enlarged(field, Motion(), box.height, box.width, rows)
        edit, part = edit.clamp(0, 1).to(target.device), alpha[rows].to(target.device)
        target[:, rows] = blended(target[:, rows], edit, part)


def _smaller(image: Tensor, box: Box) -> Tensor:
    size = min(box.height, image.shape[-2]), min(box.width, image.shape[-1])
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def _in_pixels(found: EditedRegion, region: Region) -> EditedRegion:
    """The report in pixels of the image."""
    box, fit = region.box, region.fit
    shift = found.shift[0] * box.width / fit.columns, found.shift[1] * box.height / fit.rows
    return replace(found, box=(box.left, box.top, box.width, box.height), drawn=(fit.width, fit.height), shift=shift)
