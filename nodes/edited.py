"""Edits that were put back, as outputs of a node and in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..deepgen_npu.edits.run import EditedImage


logger = logging.getLogger(__name__)


def to_output(edits: Sequence[EditedImage], device: torch.device, node: str = "DeepGen") -> tuple[Tensor, Tensor]:
    """IMAGE [b, H, W, 3 or 4] and MASK [b, H, W]; the log gets what was kept.

    Args:
        edits: Of images of one size.
        device: Where the mask goes; images are where they were.
        node: Name at the beginning of the line.
    """
    for number, edit in enumerate(edits, 1):
        which = f"image {number} of {len(edits)}: " if len(edits) > 1 else ""
        logger.info("%s: %s%s.", node, which, edit.kept)
        if not edit.kept.regions:
            logger.info("%s: paint what may change, in the mask editor of Load Image.", node)
    images = torch.stack([edit.image.permute(1, 2, 0) for edit in edits])
    return images, torch.stack([edit.change_mask for edit in edits]).to(device)
