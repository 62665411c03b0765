"""The VAE as DeepGen uses it: images to latents and back, and the scale that the DiT works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .numerics import require_finite


if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The mode of the posterior: [b, 3, H, W] in [-1, 1] to [b, C, H/8, W/8], unscaled.

    The original draws a sample with PyTorch's global generator; with the mode, the result depends on the seed alone.
    """
    return vae.encode(pixels).latent_dist.mode()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents [b, C, H/8, W/8] to [b, 3, H, W], about [-1, 1], not clamped, in the VAE's dtype.

    Raises:
        FloatingPointError: When a value is NaN or infinite.
    """
    # One at a time: a batch would need a gigabyte for each image of 512 x 512.
    pixels = torch.cat([vae.decode(one).sample for one in latents.split(1)])
    require_finite(pixels, "The VAE's output", {"vae": vae})
    return pixels


def scale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents [b, C, h, w] from the VAE's own space to the scaled one that the DiT works in."""
    return (latents - _shift(vae)) * vae.config["scaling_factor"]


def unscale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents [b, C, h, w] from the DiT's scaled space to the VAE's own, in the VAE's dtype, as in the original."""
    return latents.to(vae.dtype) / vae.config["scaling_factor"] + _shift(vae)


def _shift(vae: AutoencoderKL) -> float:
    return vae.config["shift_factor"] or 0.0
