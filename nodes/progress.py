"""While weights are read and between two denoising steps: cancel, progress bar, preview and its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.cli_args
import comfy.latent_formats
import comfy.model_management as mm
import comfy.utils
import latent_preview

from ..deepgen_npu.checkpoint.folder import latent_rgb_factors
from .placement import ComfyPlacement


if TYPE_CHECKING:
    from ..deepgen_npu.checkpoint.folder import Checkpoint
    from ..deepgen_npu.checkpoint.weights import BytesRead
    from ..deepgen_npu.pipeline import DeepGenPipeline, StepCallback


_ON_CPU = (comfy.cli_args.LatentPreviewMethod.Auto, comfy.cli_args.LatentPreviewMethod.Latent2RGB)


def reading_progress(checkpoint: Checkpoint, *parts: str) -> BytesRead:
    """For ``on_bytes_read``: the running node's progress bar over the bytes of these parts, and cancel."""
    bar = comfy.utils.ProgressBar(checkpoint.nbytes(*parts))

    def on_bytes_read(count: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update(count)

    return on_bytes_read


def step_callback(pipe: DeepGenPipeline, steps: int, runs: int = 1) -> StepCallback:
    """A ``callback_on_step_end`` with one progress bar for all runs.

    The preview is the user's choice in ComfyUI and shows x0, the estimate of the finished image. Latent2RGB
    gets a copy on the CPU, since ComfyUI would copy its image off an NPU without waiting; TAESD runs on the
    device.

    Args:
        pipe: On ComfyUI's memory manager.
        steps: Of each run.
        runs: How often the pipeline denoises, one batch after the other.
    """
    total = steps * runs
    assert isinstance(pipe.placement, ComfyPlacement)
    report = latent_preview.prepare_callback(pipe.placement.denoiser, total)
    before = 0

    def callback(pipe, step, timestep, tensors):
        nonlocal before
        mm.throw_exception_if_processing_interrupted()
        x0 = tensors["x0"]
        if comfy.cli_args.args.preview_method in _ON_CPU:
            x0 = x0.cpu()
        # A run that found no memory left begins again at step 0.
        report(before + step, x0, tensors["latents"], total)
        if step == steps - 1:
            before += steps

    return callback


def latent_format(checkpoint: Checkpoint) -> comfy.latent_formats.LatentFormat:
    """SD3's, with the colours of the checkpoint's own VAE where ``model_index.json`` has them."""
    format = comfy.latent_formats.SD3()
    if (factors := latent_rgb_factors(checkpoint)) is not None:
        *format.latent_rgb_factors, format.latent_rgb_factors_bias = factors
        # The decoder of SD3's latents would show something else.
        format.taesd_decoder_name = None
    return format
