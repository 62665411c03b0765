"""Conditioning as ComfyUI's own nodes have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.model_management as mm
import torch
from torch import Tensor


if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat

    from ...deepgen_npu.conditioning import Conditioning

CoreConditioning = list[list[Any]]
"""``[[embeds, {"pooled_output": ..., "reference_latents": [...]}]]``."""


def to_core(
    conditionings: Sequence[Conditioning], latent_format: LatentFormat
) -> tuple[CoreConditioning, CoreConditioning]:
    """Positive and negative conditioning, with a row for each image of a batch.

    In float32, as all of ComfyUI's. Reference latents are in the VAE's own space, where ComfyUI's Reference Latent
    puts them as well.

    Args:
        conditionings: Each for one image; all for images of one size.
        latent_format: Of the model.
    """

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.float() for tensor in tensors]).to(mm.intermediate_device())

    of_each = zip(*(one.reference_latents for one in conditionings), strict=True)
    references = [latent_format.process_out(joined(tensors)) for tensors in of_each]

    def core(embeds: Sequence[Tensor], pooled: Sequence[Tensor]) -> CoreConditioning:
        extra: dict[str, Any] = {"pooled_output": joined(pooled)}
        if references:
            extra["reference_latents"] = references
        return [[joined(embeds), extra]]

    positive = [one.prompt_embeds for one in conditionings], [one.pooled_prompt_embeds for one in conditionings]
    negative = (
        [one.negative_prompt_embeds for one in conditionings],
        [one.negative_pooled_prompt_embeds for one in conditionings],
    )
    return core(*positive), core(*negative)


class References(comfy.conds.CONDList):
    """Latents of references, with a size that counts those of one row: memory is estimated by rows."""

    def size(self) -> list[int]:
        """[1, channels, cells of all references]."""
        channels = self.cond[0].shape[1]
        return [1, channels, sum(one[0].numel() for one in self.cond) // channels]
