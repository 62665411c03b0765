"""What evaluations of one sampling share, computed once: context, references, positions, and modulation ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...deepgen_npu.graphs import Step, capture
from ...deepgen_npu.model import modulation as modulations
from ...deepgen_npu.model.transformer import AroundBlock, prepare, step


if TYPE_CHECKING:
    from .denoiser import DeepGenDenoiser
    from .sampling import Sampling


class Evaluation:
    """The DiT for the same rows of conditioning and the same size, at any step of a sampling.

    Args:
        denoiser: The DiT.
        sampling: Which it belongs to.
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
        self._denoiser, self._sampling = denoiser, sampling
        height, width = x.shape[-2:]
        self._prepared = prepare(denoiser, context, references, height, width)
        self._pooled = y
        self._ahead: modulations.ModulationAhead | None = None
        if sampling.timesteps is not None:
            timesteps = sampling.timesteps[:, None]  # [n, 1]
            embeddings = modulations.time_and_text(denoiser, timesteps, y)  # [n, rows, width]
            wanted = len(embeddings) * modulations.nbytes_of_a_step(denoiser.slots, embeddings)
            self._ahead = modulations.ModulationAhead(denoiser.slots, embeddings, sampling.reserve(wanted))
        # A graph is captured with the latents of the first step.
        self._captures = sampling.capture_graph
        self._captured: Step | None = None

    def __call__(self, x: Tensor, timesteps: Tensor, around_block: AroundBlock | None = None) -> Tensor:
        """The velocity [rows, C, h, w].

        Args:
            x: [rows, C, h, w].
            timesteps: [rows] in 0..1000.
            around_block: As in `transformer.step`.
        """
        modulation = self._modulation(timesteps)  # [rows, vectors, width]
        if around_block is not None:
            return self._step(x, modulation, around_block)
        if self._captures:
            self._captures, captured = False, capture(self._step, x, modulation)
            self._captured = None if captured == self._step else captured  # never its own method: a circle
        return (self._captured or self._step)(x, modulation)

    def _step(self, x: Tensor, modulation: Tensor, around_block: AroundBlock | None = None) -> Tensor:
        return step(self._denoiser, self._denoiser.slots, self._prepared, x, modulation, around_block)

    def _modulation(self, timesteps: Tensor) -> Tensor:
        if self._ahead is not None:
            return self._ahead(self._sampling.step)
        embeddings = modulations.time_and_text(self._denoiser, timesteps, self._pooled)  # [rows, width]
        return modulations.modulate(self._denoiser.slots, embeddings[None])[0]
