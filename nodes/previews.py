"""The colours of live previews."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.latent_formats

from ..deepgen_npu.checkpoint.folder import latent_rgb_factors


if TYPE_CHECKING:
    from ..deepgen_npu.checkpoint.folder import Checkpoint


def latent_format(checkpoint: Checkpoint) -> comfy.latent_formats.LatentFormat:
    """SD3's, with the colours of the checkpoint's own VAE if it tells them."""
    format = comfy.latent_formats.SD3()
    if (factors := latent_rgb_factors(checkpoint)) is not None:
        *format.latent_rgb_factors, format.latent_rgb_factors_bias = factors
        # The decoder of SD3's latents would show something else.
        format.taesd_decoder_name = None
    return format
