"""SD3's latent space, as the VAE of a checkpoint has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.latent_formats

from ...deepgen_npu.checkpoint.folder import latent_rgb_factors
from ..images import pixel_size


if TYPE_CHECKING:
    from ...deepgen_npu.checkpoint.folder import Checkpoint


def latent_format(checkpoint: Checkpoint) -> comfy.latent_formats.LatentFormat:
    """SD3's, with scale, shift and colours of the checkpoint's own VAE.

    The colours are those of ``model_index.json``, where it has some.
    """
    format, config = comfy.latent_formats.SD3(), checkpoint.configs["vae"]
    format.scale_factor, format.shift_factor = config["scaling_factor"], config["shift_factor"] or 0.0
    format.latent_channels = config["latent_channels"]
    # From pixels as they are shown to latents. ComfyUI 0.33 makes empty latents of another model smaller by it.
    format.spacial_downscale_ratio = checkpoint.sizes.vae_factor * pixel_size(checkpoint.sizes)
    if (factors := latent_rgb_factors(checkpoint)) is not None:
        *format.latent_rgb_factors, format.latent_rgb_factors_bias = factors
        # The decoder of SD3's latents would show something else.
        format.taesd_decoder_name = None
    return format
