"""The colours of live previews: a linear map from the latents of the demo's VAE to RGB."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_npu import DeepGenPipeline

from .encode import image_tensor
from .scenes import CORE_AND_EXTENDED, random_scene


SCENES = 500
DIGITS = 4


@torch.no_grad()
def latents_and_colours(pipe: DeepGenPipeline, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Scaled latents [n, C] of ``count`` scenes, and the mean colours [n, 3] in [-1, 1] of their pixels."""
    rng = random.Random(f"preview colours {seed}")
    # All of one size, so that they form batches.
    scenes = [random_scene(rng, replace(CORE_AND_EXTENDED, other_formats=0.0)) for _ in range(count)]
    latents, colours = [], []
    for start in range(0, count, 100):
        images = image_tensor(scenes[start : start + 100])
        latents.append(pipe.encode_image(images).movedim(1, -1).flatten(0, -2))
        colours.append(F.avg_pool2d(images, pipe.vae_scale_factor).movedim(1, -1).flatten(0, -2))
    return torch.cat(latents), torch.cat(colours)


def fit(pipe: DeepGenPipeline, seed: int = 0, count: int = SCENES) -> list[list[float]]:
    """Least-squares factors as rows [r, g, b]: one for each channel, and the bias as the last."""
    latents, colours = latents_and_colours(pipe, seed, count)
    ones = torch.ones(len(latents), 1)
    factors = torch.linalg.lstsq(torch.cat([latents, ones], dim=1).double(), colours.double()).solution
    return [[round(float(value), DIGITS) for value in row] for row in factors]
