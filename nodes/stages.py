"""Encode, sample, decode: what every node that makes images is built from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..deepgen_npu.checks import MAX_IMAGES, must, must_be
from ..deepgen_npu.conditioning import Conditioning
from ..deepgen_npu.edits.fitting import Fit
from ..deepgen_npu.formatting import format_size
from ..deepgen_npu.images import from_pixels
from .check_tensors import one_or
from .images import enlarge, pixel_size, resize, to_image
from .lazy_pipeline import LazyPipeline
from .native.conditioning import CoreConditioning, to_core
from .progress import StepCallback, step_callback


if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat
    from PIL import Image


def encode(
    model: LazyPipeline,
    prompt: str,
    negative_prompt: str,
    groups: list[list[Image.Image]],
    height: int,
    width: int,
) -> list[Conditioning]:
    """Texts and images to conditioning, which waits on the CPU.

    Args:
        model: The loader's output.
        prompt: For every image of the batch.
        negative_prompt: For every image of the batch.
        groups: The references of each image of the batch; [[]] to generate.
        height: In pixels of the model.
        width: In pixels of the model.

    Returns:
        One for each group.
    """
    model.check_prompts(prompt, negative_prompt, editing=any(groups))
    pipe = model.load()
    try:
        encoded = pipe.encode_each(prompt, groups, negative_prompt, height, width)
    finally:
        pipe.placement.release()
    return [conditioning.to(torch.device("cpu"), pipe.dtype) for conditioning in encoded]


def for_core(
    model: LazyPipeline, conditionings: list[Conditioning]
) -> tuple[CoreConditioning, CoreConditioning, dict[str, Any]]:
    """Positive and negative conditioning and an empty LATENT for ComfyUI's own nodes.

    Args:
        model: The loader's output.
        conditionings: One for each image of a batch.
    """
    return (
        *to_core(conditionings, _latent_format(model)),
        {"samples": _empty(model, conditionings, len(conditionings))},
    )


def sample(
    model: LazyPipeline,
    conditionings: list[Conditioning],
    seed: int,
    steps: int,
    cfg: float,
    batch_size: int = 1,
    latent_image: dict[str, Any] | None = None,
    denoise: float = 1.0,
    place: int | None = None,
    callback: StepCallback | None = None,
) -> dict[str, Any]:
    """Conditioning to a LATENT in the VAE's own space, as ComfyUI has it, by ComfyUI's own sampling.

    Args:
        model: The loader's output.
        conditionings: One for each image, or one for all.
        seed: Of the noise.
        steps: Number of denoising steps.
        cfg: Scale of classifier-free guidance.
        batch_size: Images of each conditioning; with a latent_image, its batch counts instead.
        latent_image: What to start from; its mask keeps all that is outside.
        denoise: Denoising strength; below 1 something of the latent_image is kept.
        place: Of the only image in a batch that is made one by one: it has the noise that it has in the batch.
        callback: Of several samplings that have one progress bar; None for a bar of its own.

    Raises:
        ValueError: When the latent_image does not fit.
    """
    _check_model(model, conditionings)
    clean, mask, chosen = None, None, None
    if latent_image is not None:
        clean, mask, chosen = _unpack(model, latent_image)
        conditionings = _sized_for(model, conditionings, clean)
        if len(conditionings) == 1:
            batch_size = len(clean)
        elif len(clean) not in (1, len(conditionings)):
            raise ValueError(
                f"latent_image has a batch of {len(clean)} but conditioning has {len(conditionings)} images: use "
                f"{one_or(len(conditionings))} latents."
            )
        else:
            batch_size = 1
    elif denoise < 1:
        raise ValueError(
            "denoise < 1 needs a latent_image: connect one, for instance from VAE Encode, or set denoise to 1."
        )
    total = batch_size * len(conditionings)
    if total > MAX_IMAGES:
        most = f"at most {MAX_IMAGES // len(conditionings)} for {len(conditionings)} images in conditioning"
        raise ValueError(must_be("batch_size", most, batch_size))
    start = _empty(model, conditionings, total) if clean is None else repeat_to_batch_size(clean.float(), total)
    # Image k has the same noise in a batch of any size, also when it was taken out of one: LatentFromBatch stores
    # its index.
    chosen = [place] if place is not None else chosen
    noise = comfy.sample.prepare_noise(start, seed, chosen if chosen and len(chosen) == total else None)
    sigmas = model.sigmas(steps, denoise, *start.shape[-2:])
    callback = callback or step_callback(model.patcher, steps, runs=len(conditionings))
    finished = []
    for index, conditioning in enumerate(conditionings):
        rows = slice(index * batch_size, (index + 1) * batch_size)
        positive, negative = to_core([conditioning], _latent_format(model))
        finished.append(
            comfy.sample.sample(
                model.patcher,
                noise[rows],
                steps,
                max(cfg, 1.0),  # at 1 there is no guidance; below it ComfyUI would turn it round
                "euler",
                "normal",  # the published schedule
                positive,
                negative,
                start[rows],
                denoise=denoise,
                noise_mask=None if mask is None else _rows(mask, rows),
                sigmas=sigmas,
                callback=callback,
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=seed,
            )
        )
    return {**(latent_image or {}), "samples": torch.cat(finished)}


def decode(model: LazyPipeline, latent: dict[str, Any], height: int, width: int, fit: Fit | None = None) -> Tensor:
    """A LATENT to an IMAGE [b, height, width, 3]: to the bit what VAE Decode makes of it, if that is its size.

    Args:
        model: The loader's output.
        latent: To decode.
        height: To show it at, in pixels.
        width: To show it at, in pixels.
        fit: Which part of it is the image; None for all.
    """
    pixels = decode_pixels(model, latent)
    pixels = enlarge(pixels if fit is None else fit.content(pixels), pixel_size(model.sizes))
    return to_image(resize(pixels, height, width, model.sizes))


def decode_pixels(model: LazyPipeline, latent: dict[str, Any]) -> Tensor:
    """A LATENT to pixels of the model: [b, 3, h, w] in [0, 1]."""
    pixels: Any = from_pixels(model.load().decode_unscaled(latent["samples"]), "pt")
    return pixels


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    """The rows of a batch, or the only one there is."""
    return tensor if len(tensor) == 1 else tensor[rows]


def _empty(model: LazyPipeline, conditionings: list[Conditioning], batch: int) -> Tensor:
    """Zeros [batch, C, h, w] of the size that conditionings are for."""
    factor, first = model.sizes.vae_factor, conditionings[0]
    shape = batch, model.vae.latent_channels, first.height // factor, first.width // factor
    return torch.zeros(shape, device=mm.intermediate_device())


def _latent_format(model: LazyPipeline) -> LatentFormat:
    return model.patcher.get_model_object("latent_format")


def _check_model(model: LazyPipeline, conditionings: list[Conditioning]) -> None:
    """Refuse conditionings of another model.

    Raises:
        ValueError: Naming what does not fit.
    """
    advice = "Connect the same DeepGen Loader to DeepGen Encode Prompt and DeepGen Sampler."
    made = "conditioning was encoded by a different model"
    for part, expected in (("prompt_embeds", model.embedding_width), ("pooled_prompt_embeds", model.pooled_width)):
        given = getattr(conditionings[0], part).shape[-1]
        if given != expected:
            what = "embedding" if part == "prompt_embeds" else "pooled embedding"
            raise ValueError(f"{made} ({what} width {given}, expected {expected}). {advice}")
    sizes, channels = model.sizes, model.vae.latent_channels
    for one in conditionings:
        try:
            sizes.check(one.height, one.width, editing=bool(one.reference_latents))
        except ValueError as error:
            raise ValueError(f"{made}: {error} {advice}") from None
        expected = [1, channels, one.height // sizes.vae_factor, one.width // sizes.vae_factor]
        for reference in one.reference_latents:
            if list(reference.shape) != expected:
                raise ValueError(f"{made} (reference {list(reference.shape)}, expected {expected}). {advice}")


def _unpack(model: LazyPipeline, latent: dict[str, Any]) -> tuple[Tensor, Tensor | None, list[int] | None]:
    """Samples [b, C, h, w], mask [1 or b, 1, H, W] and batch indices of a LATENT."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    channels = model.vae.latent_channels
    if samples.shape[1] != channels:
        shape = f"have the shape [batch, {channels}, height, width]"
        advice = "Make it with VAE Encode and the loader's vae, or with EmptySD3LatentImage."
        raise ValueError(must("latent_image", shape, list(samples.shape), advice=advice))
    return samples, mask, latent.get("batch_index")


def _sized_for(model: LazyPipeline, conditionings: list[Conditioning], samples: Tensor) -> list[Conditioning]:
    """The conditionings at the size of latents: texts have no size of their own, references have."""
    sizes = model.sizes
    height, width = (side * sizes.vae_factor for side in samples.shape[-2:])
    first = conditionings[0]
    if (height, width) == (first.height, first.width):
        return conditionings
    if first.reference_latents:
        scale = pixel_size(sizes)
        raise ValueError(
            f"latent_image is {format_size(width * scale, height * scale)} but conditioning is for "
            f"{format_size(first.width * scale, first.height * scale)}: use the same size for both."
        )
    try:
        sizes.check(height, width, editing=False)
    except ValueError as error:
        raise ValueError(f"latent_image: {error}") from None
    return [replace(conditioning, height=height, width=width) for conditioning in conditionings]
