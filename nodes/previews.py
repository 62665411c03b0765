"""The colours of live previews."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.latent_formats


if TYPE_CHECKING:
    from ..deepgen_npu.checkpoint import Checkpoint

# The key of ``model_index.json`` in which a checkpoint whose VAE is not SD3's tells what its latents look like: a row
# [r, g, b] for each channel and a last one to add. In scaled space, for colours in [-1, 1].
RGB_FACTORS_KEY = "_deepgen_latent_rgb_factors"


def latent_format(checkpoint: Checkpoint) -> comfy.latent_formats.LatentFormat:
    """SD3's, with the colours of the checkpoint's own VAE if it tells them."""
    format = comfy.latent_formats.SD3()
    if factors := checkpoint.index.get(RGB_FACTORS_KEY):
        *format.latent_rgb_factors, format.latent_rgb_factors_bias = factors
        # The decoder of SD3's latents would show something else.
        format.taesd_decoder_name = None
    return format
