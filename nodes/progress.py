"""What happens between two denoising steps: cancel, progress bar, preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management as mm
import latent_preview

from .memory import placement_of


if TYPE_CHECKING:
    from ..deepgen_npu.pipeline import DeepGenPipeline, StepCallback


def step_callback(pipe: DeepGenPipeline, steps: int, pictures: int = 1) -> StepCallback:
    """A ``callback_on_step_end`` for a run of ``pictures`` x ``steps`` steps under one progress bar.

    The preview is the user's choice in ComfyUI and shows x0, the estimate of the finished picture. It is taken
    from a copy on the CPU: an asynchronous copy off an NPU might be read too early.
    """
    total = steps * pictures
    report = latent_preview.prepare_callback(placement_of(pipe).denoiser, total)
    done = 0

    def callback(pipe, step, timestep, tensors):
        nonlocal done
        mm.throw_exception_if_processing_interrupted()
        report(done, tensors["x0"].cpu(), tensors["latents"], total)
        done += 1

    return callback
