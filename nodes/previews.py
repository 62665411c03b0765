"""The colours of live previews."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.latent_formats

from ..deepgen_npu.checkpoint import CheckpointError


if TYPE_CHECKING:
    from ..deepgen_npu.checkpoint import Checkpoint

# The key of ``model_index.json`` in which a checkpoint whose VAE is not SD3's tells what its latents look like: a row
# [r, g, b] for each channel and a last one to add. In scaled space, for colours in [-1, 1].
RGB_FACTORS_KEY = "_deepgen_latent_rgb_factors"


def latent_format(checkpoint: Checkpoint) -> comfy.latent_formats.LatentFormat:
    """SD3's, with the colours of the checkpoint's own VAE if it tells them.

    Raises:
        CheckpointError: When it tells something else than colours.
    """
    format = comfy.latent_formats.SD3()
    factors = checkpoint.index.get(RGB_FACTORS_KEY)
    if factors is not None:
        rows = checkpoint.configs["vae"]["latent_channels"] + 1
        if not _is_table(factors, rows, 3):
            raise CheckpointError(
                f"{RGB_FACTORS_KEY} in model_index.json of {checkpoint.folder} is not a list of {rows} lists of 3 "
                "numbers: one for each latent channel, and one to add."
            )
        *format.latent_rgb_factors, format.latent_rgb_factors_bias = factors
        # The decoder of SD3's latents would show something else.
        format.taesd_decoder_name = None
    return format


def _is_table(value: object, rows: int, columns: int) -> bool:
    """Whether it is a list of so many lists of so many numbers."""

    def is_row(row: object) -> bool:
        return isinstance(row, list) and len(row) == columns and all(type(one) in (int, float) for one in row)

    return isinstance(value, list) and len(value) == rows and all(map(is_row, value))
