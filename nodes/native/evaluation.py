"""What evaluations of one sampling share, computed once: context, references, positions, and modulation ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...deepgen_npu.graphs import Step, capture
from ...deepgen_npu.model import modulation as modulations
from ...deepgen_npu.model.transformer import AroundBlock, prepare, step


if TYPE_CHECKING:
    from .denoiser import DeepGenDenoiser
    from .sampling import Sampling


class Evaluation:
    """The DiT for the same rows of conditioning and the same size, at any timestep of a sampling.

    Args:
        denoiser: The DiT.
        sampling: What is known of the sampling.
        x: [rows, C, h, w], whose sides are multiples of the patch.
        context: [rows, L, joint_attention_dim].
        y: [rows, pooled_projection_dim].
        references: Each [rows, C, h_k, w_k], sides as of ``x``.
    """

    def __init__(
        self,
        denoiser: DeepGenDenoiser,
        sampling: Sampling,
        x: Tensor,
        context: Tensor,
        y: Tensor,
        references: Sequence[Tensor],
    ):
        self._denoiser = denoiser
        self._prepared = prepare(denoiser, context, references, *x.shape[-2:])
        self._pooled = y
        self._timesteps = sampling.timesteps
        self._ahead: Tensor | None = None  # [steps, rows or conditionings, vectors, width]
        if self._timesteps is not None:
            self._ahead = self._modulation_ahead(sampling, self._timesteps)
        # A graph is captured with the latents of the first step.
        self._captures = sampling.capture_graph
        self._evaluate: Step = self._step

    def _modulation_ahead(self, sampling: Sampling, timesteps: Tensor) -> Tensor | None:
        """The modulation of all steps, if it fits into what is left of `MODULATION_BYTES`."""
        slots = self._denoiser.slots
        pooled = _without_copies(self._pooled)
        embeddings = modulations.time_and_text(self._denoiser, timesteps[:, None], pooled)  # [n, rows, width]
        nbytes = len(embeddings) * modulations.nbytes_of_a_step(slots, embeddings)
        return modulations.modulate(slots, embeddings) if sampling.reserve(nbytes) else None

    def __call__(self, x: Tensor, timesteps: Tensor, around_block: AroundBlock | None = None) -> Tensor:
        """The velocity [rows, C, h, w].

        Args:
            x: [rows, C, h, w].
            timesteps: [rows] in 0..1000.
            around_block: As in `transformer.step`.
        """
        modulation = self._modulation(timesteps)
        if around_block is not None:
            return step(self._denoiser, self._denoiser.slots, self._prepared, x, modulation, around_block)
        if self._captures:
            self._captures, self._evaluate = False, capture(self._step, x, modulation)
        return self._evaluate(x, modulation)

    def _step(self, x: Tensor, modulation: Tensor) -> Tensor:
        return step(self._denoiser, self._denoiser.slots, self._prepared, x, modulation)

    def _modulation(self, timesteps: Tensor) -> Tensor:
        """[rows, vectors, width]; without a wait for the device."""
        slots, rows = self._denoiser.slots, len(timesteps)
        if self._ahead is None or self._timesteps is None:
            embeddings = modulations.time_and_text(self._denoiser, timesteps, self._pooled)[None]  # [1, rows, width]
            return modulations.modulate(slots, embeddings)[0]
        index = modulations.nearest_step(self._timesteps, timesteps[:1])
        modulation = modulations.select(self._ahead, index)  # [rows or conditionings, vectors, width]
        copies = rows // len(modulation)
        return modulation.repeat_interleave(copies, dim=0) if copies > 1 else modulation


def _without_copies(pooled: Tensor) -> Tensor:
    """[rows, n] without the copies that ComfyUI makes of a conditioning for each image of a batch.

    Copies follow each other. Which there are is read from the device, once a sampling.
    """
    rows = len(pooled)
    for kept in (one for one in range(1, rows) if rows % one == 0):
        distinct = pooled[:: rows // kept]
        if torch.equal(distinct.repeat_interleave(rows // kept, dim=0), pooled):
            return distinct
    return pooled
