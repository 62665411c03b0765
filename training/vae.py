"""Stage 1, the VAE, and stage 5, finetuning its decoder. ``python -m training vae``, ``... decoder``."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from deepgen_npu.images import from_pixels

from . import judge
from .cases import JUDGED
from .encode import image_tensor, to_tensor
from .model import load, save_part
from .progress import Log, cosine, optimizer_step
from .resume import Saved
from .scenes import BACKGROUNDS, COLOURS, CORE_AND_EXTENDED, SIDE, Colour, Domain, pixels, random_scene, render


BATCH = 32
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 3e-4
DECODER_LEARNING_RATE = 1e-3
DECODER_NOISE = 0.15
"""Largest standard deviation of the noise on the latents, in scaled space, while the decoder is finetuned."""
OBJECT_WEIGHT = 4.0
"""How much more a pixel of a thing or its edge counts than one of the plain background."""

SCENES = Domain(further_shapes=0.4, other_sizes=0.4, two_things=0.4)
"""Most scenes have something that is hard for a VAE: a star, a ring, a small thing or two things."""


def train(folder: Path, state: Path, seconds: float, seed: int, log: Log, images: int = 1000) -> None:
    """Train the VAE of ``folder`` and write weights, shift and scaling factor.

    Args:
        folder: The checkpoint.
        state: The file with the state of the training.
        seconds: Of training, over all runs.
        seed: Of weights, scenes and noise.
        log: For losses and results.
        images: Number of images to evaluate with.
    """
    torch.manual_seed(seed)
    pipe = load(folder)
    vae = AutoencoderKL.from_config(pipe.vae.config)
    initialise(vae)
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.97), weight_decay=0.0)
    run = Saved(state, vae=vae, optimizer=optimizer)
    rng = random.Random(f"{seed} {run.step}")
    for part in run.until(seconds):
        batch = _training_batch(rng)
        if part < 0.25:  # crops first: four times as many steps
            top, left = rng.randrange(SIDE // 2 + 1), rng.randrange(SIDE // 2 + 1)
            batch = batch[..., top : top + SIDE // 2, left : left + SIDE // 2]
        posterior = vae.encode(batch).latent_dist
        restored = vae.decode(posterior.sample()).sample
        loss = _loss(restored, batch)
        divergence = posterior.kl().mean() / batch[0, 0].numel()
        rate = LEARNING_RATE * min(1.0, (run.step + 1) / 50) * cosine(part)
        optimizer_step(optimizer, loss + KL_WEIGHT * divergence, rate)
        if run.step % 100 == 0:
            log.write(stage="vae", step=run.step, seconds=run.seconds, loss=float(loss.detach()))
    finish(folder, vae, seed, log, images)


def initialise(vae: AutoencoderKL) -> None:
    """Initialise nearly linear: residual branches at zero, resampling close to the identity.

    From the initialisation of diffusers, a VAE of this size first learns wrong hues.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif "upsamplers" in name:
            nn.init.dirac_(module.weight)
            module.weight.data.add_(torch.randn_like(module.weight) * 0.01)
            nn.init.zeros_(module.bias)
        elif "downsamplers" in name or "conv_shortcut" in name or name.endswith("conv_in"):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    # Little noise in the latents at first.
    latent = vae.config["latent_channels"]
    vae.encoder.conv_out.weight.data[latent:].zero_()
    vae.encoder.conv_out.bias.data[latent:] = -4.0


def finetune_decoder(folder: Path, state: Path, seconds: float, seed: int, log: Log, images: int = 1000) -> None:
    """Train the decoder of ``folder`` alone, so that latents that are stored or learned by the DiT stay valid.

    It learns to decode slightly noisy latents, as those of the DiT are, to clean images.

    Args:
        folder: The checkpoint.
        state: The file with the state of the training.
        seconds: Of training, over all runs.
        seed: Of scenes and noise.
        log: For losses and results.
        images: Number of images to evaluate with.
    """
    torch.manual_seed(seed)
    vae = load(folder).vae
    parameters = list(vae.decoder.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    noise = DECODER_NOISE / vae.config["scaling_factor"]
    optimizer = torch.optim.AdamW(parameters, lr=DECODER_LEARNING_RATE, betas=(0.9, 0.97), weight_decay=0.0)
    run = Saved(state, decoder=vae.decoder, optimizer=optimizer)
    rng = random.Random(f"decoder {seed} {run.step}")
    for part in run.until(seconds):
        batch = _training_batch(rng)
        with torch.no_grad():
            latents = vae.encode(batch).latent_dist.mode()
            latents += noise * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        loss = _loss(vae.decode(latents).sample, batch)
        optimizer_step(optimizer, loss, DECODER_LEARNING_RATE * min(1.0, (run.step + 1) / 50) * cosine(part))
        if run.step % 100 == 0:
            log.write(stage="decoder", step=run.step, seconds=run.seconds, loss=float(loss.detach()))
    vae.to(torch.bfloat16).float()
    save_part(folder, "vae", vae.state_dict())
    log.write(stage="decoder", **measure_reconstruction(vae, seed + 2, images))


def _training_batch(rng: random.Random) -> Tensor:
    return to_tensor([_training_image(rng) for _ in range(BATCH)])


def _loss(restored: Tensor, batch: Tensor) -> Tensor:
    weight = _weight(batch)
    error = restored - batch
    return (weight * (error.abs() + 3 * error.square())).sum() / weight.sum() / 3


def _training_image(rng: random.Random) -> np.ndarray:
    """[SIDE, SIDE, 3]: a scene; two of five have random colours."""
    scene = random_scene(rng, SCENES)
    if rng.random() < 0.6:
        return pixels(scene)

    def palette(names: Iterable[str]) -> dict[str, Colour]:
        return {name: (rng.randrange(256), rng.randrange(256), rng.randrange(256)) for name in names}

    return np.asarray(render(scene, palette(COLOURS), palette(BACKGROUNDS)))


def _weight(batch: Tensor) -> Tensor:
    """[b, 1, H, W]: things and their surroundings count more. The corner shows the background."""
    differs = ((batch - batch[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05).float()
    return 1 + (OBJECT_WEIGHT - 1) * F.max_pool2d(differs, 5, stride=1, padding=2)


@torch.no_grad()
def finish(folder: Path, vae: AutoencoderKL, seed: int, log: Log, images: int) -> None:
    """Round the weights to the stored dtype, measure mean and scale of the latents, and save both."""
    vae.eval()
    vae.to(torch.bfloat16).float()
    rng = random.Random(seed + 1)
    scenes = [random_scene(rng, replace(CORE_AND_EXTENDED, other_formats=0.0)) for _ in range(500)]
    latents = torch.cat([vae.encode(image_tensor([scene])).latent_dist.mode() for scene in scenes])
    shift, scaling = round(float(latents.mean()), 5), round(float(1 / latents.std()), 5)
    save_part(folder, "vae", vae.state_dict(), shift_factor=shift, scaling_factor=scaling)
    log.write(stage="vae", shift_factor=shift, scaling_factor=scaling, **measure_reconstruction(vae, seed + 2, images))


@torch.no_grad()
def measure_reconstruction(vae: AutoencoderKL, seed: int, count: int = 1000) -> dict[str, float]:
    """PSNR [dB] of reconstructions, and the part of them that the judge reads correctly, by key of `JUDGED`."""
    rng = random.Random(seed)
    right = dict.fromkeys(JUDGED, 0)
    error = 0.0
    for name, domain in JUDGED.items():
        for _ in range(count):
            scene = random_scene(rng, domain)
            image = image_tensor([scene])
            restored = vae.decode(vae.encode(image).latent_dist.mode()).sample.clamp(-1, 1)
            error += float((restored - image).square().mean()) / 4 / (2 * count)
            (restored_image,) = from_pixels(restored, "pil")
            right[name] += judge.compare(judge.recognise(restored_image), scene).right
    return {"psnr": -10 * float(np.log10(error)), **{name: value / count for name, value in right.items()}}
