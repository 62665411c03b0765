"""What evaluations of one sampling share, computed once: context, references, positions, and modulation ahead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...deepgen_npu.graphs import StepOfRun
from ...deepgen_npu.model import modulation as modulations
from ...deepgen_npu.model.transformer import AroundBlock, prepare, step


if TYPE_CHECKING:
    from .sampling import Sampling


class Evaluation:
    """The DiT for the same rows of conditioning and the same size, at any step of a sampling.

    Args:
        denoiser: The DiT, with its ``slots``.
        sampling: Which it belongs to.
        x: [rows, C, h, w], whose sides are multiples of the patch.
        context: [rows, L, joint_attention_dim].
        y: [rows, pooled_projection_dim].
        references: Each [rows, C, h_k, w_k], sides as of ``x``.
        captures: Whether the step is captured in a graph.
        in_between: As of `StepOfRun`.
    """

    def __init__(
        self,
        denoiser: Any,
        sampling: Sampling,
        x: Tensor,
        context: Tensor,
        y: Tensor,
        references: Sequence[Tensor],
        captures: bool,
        in_between: bool = False,
    ):
        self._denoiser, self._sampling = denoiser, sampling
        height, width = x.shape[-2:]
        self._prepared = prepare(denoiser, context, references, height, width)
        self._pooled = y
        self._ahead: modulations.ModulationAhead | None = None
        if sampling.timesteps is not None:
            timesteps = sampling.timesteps[:, None].to(x.device)  # [n, 1]
            embeddings = modulations.time_and_text(denoiser, timesteps, y)  # [n, rows, width]
            wanted = len(embeddings) * modulations.nbytes_of_a_step(denoiser.slots, embeddings)
            self._ahead = modulations.ModulationAhead(denoiser.slots, embeddings, sampling.reserve(wanted))
        # Not a method of this object: that would be a circle.
        plain = partial(step, denoiser, denoiser.slots, self._prepared)
        self._evaluate = StepOfRun(denoiser.graphs, captures, plain, self._prepared, denoiser, in_between)

    def __call__(self, x: Tensor, timesteps: Tensor, around_block: AroundBlock | None = None) -> Tensor:
        """The velocity [rows, C, h, w].

        Args:
            x: [rows, C, h, w].
            timesteps: [rows] in 0..1000.
            around_block: As in `transformer.step`.
        """
        modulation = self._modulation(timesteps)  # [rows, vectors, width]
        if around_block is not None:
            return step(self._denoiser, self._denoiser.slots, self._prepared, x, modulation, around_block)
        return self._evaluate(x, modulation)

    def keep_graph(self, has_room: bool) -> None:
        """The sampling has succeeded: its graph is there for the next one. Without room all graphs are dropped."""
        if has_room:
            self._evaluate.end()
        else:
            self._denoiser.graphs.clear()

    def _modulation(self, timesteps: Tensor) -> Tensor:
        if self._ahead is not None:
            return self._ahead(self._sampling.step)
        embeddings = modulations.time_and_text(self._denoiser, timesteps, self._pooled)  # [rows, width]
        return modulations.modulate(self._denoiser.slots, embeddings[None])[0]
