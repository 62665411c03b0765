"""Classifier-free guidance: the velocity of a step, from evaluations of the DiT for prompt and negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .devices import on_device
from .graphs import CaptureGraph, Graphs, StepOfRun
from .model.transformer import PreparedTransformer
from .placement import device_of


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

    from .conditioning import Conditioning


class _Branch:
    """Rows of a step that are evaluated together on one device."""

    def __init__(self, device: torch.device, prepared: PreparedTransformer, evaluate: StepOfRun):
        self._device, self._prepared, self._evaluate = device, prepared, evaluate

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Start the evaluation: [b, C, h, w] to [rows, C, h, w]. An accelerator finishes it later."""
        with on_device(self._device):
            latents = latents.to(self._device)  # [b, C, h, w]
            modulation = self._prepared.modulation(step)  # [rows, vectors, width]
            return self._evaluate(latents, modulation)  # [rows, C, h, w]

    def end(self) -> None:
        """The run has succeeded."""
        self._evaluate.end()


class GuidedVelocity:
    """The velocity of each step of one run.

    With one device, both branches of guidance are rows of one evaluation. With two, each has its own device, and the
    two run concurrently if the host launches fast enough; graph capture ensures it.

    Args:
        transformers: The DiT, or two copies of it, for the positive and the negative branch.
        conditioning: On the device and in the dtype of the first.
        timesteps: [n] in 0..1000, on the same device.
        guidance_scale: At 1 or less the negative branch is not evaluated.
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
        height: int,
        width: int,
        capture_graph: CaptureGraph,
        graphs: Graphs,
    ):
        self.scale = guidance_scale
        self.guided = guidance_scale > 1
        positive = (conditioning.prompt_embeds, conditioning.pooled_prompt_embeds)  # [b, L, D], [b, P]
        negative = (conditioning.negative_prompt_embeds, conditioning.negative_pooled_prompt_embeds)

        def branch(transformer: SD3Transformer2DModel, embeds: Tensor, pooled: Tensor) -> _Branch:
            device, rows = device_of(transformer), len(embeds)
            references = [latents.repeat(rows // len(latents), 1, 1, 1) for latents in conditioning.reference_latents]
            with on_device(device):
                tensors = (timesteps, embeds, pooled, *references)
                timesteps_, embeds, pooled, *references = (tensor.to(device) for tensor in tensors)
                prepared = PreparedTransformer(transformer, timesteps_, embeds, pooled, references, height, width)
            evaluate = StepOfRun(graphs, capture_graph, prepared, prepared.prepared, transformer)
            return _Branch(device, prepared, evaluate)

        if not self.guided:
            self._branches = [branch(transformers[0], *positive)]
        elif len(transformers) == 1:
            # Negative rows come first, as in the original.
            both = (torch.cat(pair) for pair in zip(negative, positive, strict=True))  # [2b, L, D], [2b, P]
            self._branches = [branch(transformers[0], *both)]
        else:
            self._branches = [branch(transformers[1], *negative), branch(transformers[0], *positive)]

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """The velocity of one step.

        Args:
            latents: [b, C, h, w].
            step: Index of its timestep.

        Returns:
            [b, C, h, w] on the device of ``latents``.
        """
        velocities = [branch(latents, step) for branch in self._branches]  # [b or 2b, C, h, w], or two [b, C, h, w]
        if not self.guided:
            return velocities[0]
        if len(velocities) == 1:
            negative, positive = velocities[0].chunk(2)  # [b, C, h, w] each
        else:
            negative, positive = (velocity.to(latents.device) for velocity in velocities)
        return negative + self.scale * (positive - negative)

    def end(self) -> None:
        """The run has succeeded: its graphs are kept for the next one."""
        for branch in self._branches:
            branch.end()
