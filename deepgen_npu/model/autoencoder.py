"""The VAE as DeepGen uses it: pictures to latents and back, and the scale that the DiT works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .numerics import require_finite


if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The mode of the posterior: [b, 3, H, W] in [-1, 1] to [b, C, H/8, W/8], unscaled.

    The original draws a sample from the global random numbers; with the mode, a seed alone decides.
    """
    return vae.encode(pixels).latent_dist.mode()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents [b, C, H/8, W/8] to [b, 3, H, W], about [-1, 1], not clamped, in the VAE's dtype.

    Raises:
        FloatingPointError: When a value is NaN or infinite.
    """
    # One at a time: a batch would need a gigabyte for each picture of 512 x 512.
    pixels = torch.cat([vae.decode(one).sample for one in latents.split(1)])
    require_finite(pixels, "The VAE's output", {"vae": vae})
    return pixels


def scale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """From the VAE's latents to the scaled space that the DiT works in."""
    return (latents - _shift(vae)) * vae.config["scaling_factor"]


def unscale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """From the DiT's scaled space to the VAE's latents, in the dtype of the VAE, as the original does it."""
    return latents.to(vae.dtype) / vae.config["scaling_factor"] + _shift(vae)


def _shift(vae: AutoencoderKL) -> float:
    return vae.config["shift_factor"] or 0.0
