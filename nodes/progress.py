"""While weights are read and between two denoising steps: cancel, progress bar and preview."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import comfy.model_management as mm
import comfy.utils
import latent_preview


if TYPE_CHECKING:
    from collections.abc import Callable

    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

    from ..deepgen_npu.checkpoint.folder import Checkpoint
    from ..deepgen_npu.checkpoint.reading import BytesRead


StepCallback: TypeAlias = "Callable[[int, Tensor, Tensor, int], None]"
"""What ComfyUI's samplers call after each step: number of the step, x0, x, steps of the run."""


def reading_progress(checkpoint: Checkpoint, *parts: str) -> BytesRead:
    """For ``on_bytes_read``: the running node's progress bar over the bytes of these parts, and cancel."""
    bar = comfy.utils.ProgressBar(checkpoint.nbytes(*parts))

    def on_bytes_read(count: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update(count)

    return on_bytes_read


def step_callback(patcher: ModelPatcher, steps: int, runs: int = 1) -> StepCallback:
    """A callback for ComfyUI's samplers, with one progress bar for all runs.

    The preview is the user's choice in ComfyUI and shows x0, the estimate of the finished image.

    Args:
        patcher: The MODEL.
        steps: Of each run.
        runs: How often it samples, one batch after the other.
    """
    total = steps * runs
    report = latent_preview.prepare_callback(patcher, total)
    before = 0

    def callback(step: int, x0: Tensor, x: Tensor, steps_of_run: int) -> None:
        nonlocal before
        mm.throw_exception_if_processing_interrupted()
        # A run that found no memory left begins again at step 0.
        report(before + step, x0, x, total)
        if step == steps_of_run - 1:
            before += steps

    return callback
