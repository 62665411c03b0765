"""Classifier-free guidance: the velocity of a step, from evaluations of the DiT for prompt and negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .devices import on_device
from .graphs import CaptureGraph, Graphs, StepOfRun
from .model import modulation
from .model.transformer import PreparedTransformer
from .placement import device_of


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

    from .conditioning import Conditioning


class _Branch:
    """Rows that are evaluated together on one device, in some steps of a run or in all."""

    def __init__(self, device: torch.device, prepared: PreparedTransformer, evaluate: StepOfRun, steps: Sequence[int]):
        self._device, self._prepared, self._evaluate, self._steps = device, prepared, evaluate, steps

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Start the evaluation: [b, C, h, w] to [rows, C, h, w]. An accelerator finishes it later."""
        with on_device(self._device):
            latents = latents.to(self._device)  # [b, C, h, w]
            vectors = self._prepared.modulation(self._steps.index(step))  # [rows, vectors, width]
            return self._evaluate(latents, vectors)  # [rows, C, h, w]

    def end(self) -> None:
        """The run has succeeded."""
        self._evaluate.end()


class GuidedVelocity:
    """The velocity of each step of one run.

    With one device, both branches of guidance are rows of one evaluation. With two, each has its own device, and the
    two run concurrently if the host launches fast enough; graph capture ensures it.

    The difference of the branches changes slowly from step to step. So the negative one may be left out of most steps:
    v = v_positive + (scale - 1) d, where d = v_positive - v_negative is that of the last step that had both. Which
    steps these are is known before the run, so no step waits for the device.

    Args:
        transformers: The DiT, or two copies of it, for the positive and the negative branch.
        conditioning: On the device and in the dtype of the first.
        timesteps: [n] in 0..1000, on the same device.
        guidance_scale: At 1 or less the negative branch is not evaluated.
        guidance_every: The negative branch is evaluated in each step whose index is a multiple of it.
        height: Of the latents.
        width: Of the latents.
        capture_graph: Capture each evaluation in a graph of its device.
        graphs: Those of earlier runs.
    """

    def __init__(
        self,
        transformers: Sequence[SD3Transformer2DModel],
        conditioning: Conditioning,
        timesteps: Tensor,
        guidance_scale: float,
        guidance_every: int,
        height: int,
        width: int,
        capture_graph: CaptureGraph,
        graphs: Graphs,
    ):
        self.scale = guidance_scale
        self.guided = guidance_scale > 1
        self._every = guidance_every if self.guided else 1
        self._difference: Tensor | None = None  # [b, C, h, w], of the last step that had both branches
        steps = range(len(timesteps))
        guided_steps = steps[:: self._every]
        # Two tables of modulation on one device have the bytes of one.
        shared = len(transformers) == 1 and len(guided_steps) < len(steps)
        modulation_bytes = modulation.MODULATION_BYTES // 2 if shared else None
        positive = (conditioning.prompt_embeds, conditioning.pooled_prompt_embeds)  # [b, L, D], [b, P]
        negative = (conditioning.negative_prompt_embeds, conditioning.negative_pooled_prompt_embeds)

        def branch(
            transformer: SD3Transformer2DModel,
            embeds: Tensor,
            pooled: Tensor,
            of_steps: Sequence[int],
            in_between: bool = False,
        ) -> _Branch:
            device, rows = device_of(transformer), len(embeds)
            references = [latents.repeat(rows // len(latents), 1, 1, 1) for latents in conditioning.reference_latents]
            with on_device(device):
                chosen = timesteps if of_steps == steps else torch.stack([timesteps[step] for step in of_steps])
                tensors = (chosen, embeds, pooled, *references)
                timesteps_, embeds, pooled, *references = (tensor.to(device) for tensor in tensors)
                prepared = PreparedTransformer(
                    transformer, timesteps_, embeds, pooled, references, height, width, modulation_bytes
                )
            evaluate = StepOfRun(graphs, capture_graph, prepared, prepared.prepared, transformer, in_between)
            return _Branch(device, prepared, evaluate, of_steps)

        self._positive: _Branch | None = None  # of the steps in between
        if not self.guided:
            self._branches = [branch(transformers[0], *positive, steps)]
        elif len(transformers) == 1:
            # Negative rows come first, as in the original.
            embeds, pooled = (torch.cat(pair) for pair in zip(negative, positive, strict=True))  # [2b, L, D], [2b, P]
            self._branches = [branch(transformers[0], embeds, pooled, guided_steps)]
            if shared:
                # No view of the rows above: a graph is kept with what it reads, where the next run writes.
                others = [step for step in steps if step not in guided_steps]
                self._positive = branch(transformers[0], *positive, others, in_between=True)
        else:
            self._branches = [
                branch(transformers[1], *negative, guided_steps),
                branch(transformers[0], *positive, steps),
            ]
            self._positive = self._branches[1]

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """The velocity of one step.

        Args:
            latents: [b, C, h, w].
            step: Index of its timestep.

        Returns:
            [b, C, h, w] on the device of ``latents``.
        """
        if step % self._every:
            assert self._positive is not None and self._difference is not None
            return torch.add(self._positive(latents, step), self._difference, alpha=self.scale - 1)
        velocities = [branch(latents, step) for branch in self._branches]  # [b or 2b, C, h, w], or two [b, C, h, w]
        if not self.guided:
            return velocities[0]
        if len(velocities) == 1:
            negative, positive = velocities[0].chunk(2)  # [b, C, h, w] each
        else:
            negative, positive = (velocity.to(latents.device) for velocity in velocities)
        difference = positive - negative  # [b, C, h, w]
        if self._every > 1:
            self._difference = difference
        return negative + self.scale * difference

    def end(self) -> None:
        """The run has succeeded: its graphs are kept for the next one."""
        for branch in (*self._branches, self._positive):
            if branch is not None:
                branch.end()
