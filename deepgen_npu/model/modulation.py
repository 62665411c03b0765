"""The modulation of the DiT's adaptive norms: the shifts, scales and gates of all blocks as one tensor.

A third of the DiT's weights act on a single vector for each row, the embedding of time and text. So they can be
applied ahead, to all steps of a run at once.

Shapes: ``vectors`` is the number of shifts, scales and gates of all norms, ``width`` the DiT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from .adaptive_norm import fused_norm


MODULATION_BYTES = 256 * 1024 * 1024
"""Modulation is computed ahead for as many steps as fit into this, at least one."""


@dataclass(frozen=True)
class Slot:
    """Where an adaptive norm finds its modulation among that of all norms.

    Attributes:
        linear: The layer that computes it.
        start: Index of its first vector.
        vectors: Number of vectors.
        scales: Which of them are scales, counted from the first.
    """

    linear: Module
    start: int
    vectors: int
    scales: tuple[int, ...]


def slots_of(transformer: Any) -> list[Slot]:
    """The adaptive norms in the order in which a step meets them: two for each block, and the last."""
    slots: list[Slot] = []

    def add(linear: Any, scales: tuple[int, ...]) -> None:
        start = slots[-1].start + slots[-1].vectors if slots else 0
        slots.append(Slot(linear, start, linear.out_features // linear.in_features, scales))

    # Orders of diffusers' AdaLayerNormZero (shift, scale, gate of attention, then of the feed-forward),
    # SD35AdaLayerNormZeroX (the same and the second attention's) and AdaLayerNormContinuous (scale, shift).
    for block in transformer.transformer_blocks:
        add(block.norm1.linear, (1, 4, 7) if block.use_dual_attention else (1, 4))
        add(block.norm1_context.linear, (0,) if block.context_pre_only else (1, 4))
    add(transformer.norm_out.linear, (0,))
    return slots


def time_and_text(transformer: Any, timesteps: Tensor, pooled: Tensor) -> Tensor:
    """silu of the embedding of time and text.

    Args:
        transformer: The DiT.
        timesteps: [...] in 0..1000; its shape is broadcast against the rows.
        pooled: [rows, pooled_projection_dim].

    Returns:
        [..., width] of timesteps [n, 1] and rows: [n, rows, width]; of timesteps [rows]: [rows, width].
    """
    embed = transformer.time_text_embed
    projected = embed.time_proj(timesteps.flatten()).to(pooled.dtype)  # [n, 256]
    time = embed.timestep_embedder(projected).unflatten(0, timesteps.shape)  # [..., width]
    return F.silu(time + embed.text_embedder(pooled))


def modulate(slots: Sequence[Slot], embeddings: Tensor) -> Tensor:
    """All shifts, scales and gates; to scales one is added, unless the norm itself does that (see `adaptive_norm`).

    Args:
        slots: As `slots_of` returns them.
        embeddings: [steps, rows, width] of `time_and_text`.

    Returns:
        [steps, rows, vectors, width].
    """
    steps, rows, width = embeddings.shape
    modulation = embeddings.new_empty(steps, rows, count_vectors(slots), width)
    adds_one = fused_norm(embeddings) is None
    for slot in slots:
        own = slot.linear(embeddings).unflatten(-1, (slot.vectors, width))  # [steps, rows, slot.vectors, width]
        modulation[:, :, slot.start : slot.start + slot.vectors] = own
        for scale in slot.scales if adds_one else ():
            modulation[:, :, slot.start + scale] += 1
    return modulation


def count_vectors(slots: Sequence[Slot]) -> int:
    """Number of vectors of a row."""
    return slots[-1].start + slots[-1].vectors


class ModulationAhead:
    """The modulation of the steps of a run, computed for as many steps at once as fit into a number of bytes.

    Args:
        slots: As `slots_of` returns them.
        embeddings: [n, rows, width] of `time_and_text`, one for each step.
        nbytes: Most bytes, but at least those of one step; None is `MODULATION_BYTES`.
    """

    def __init__(self, slots: Sequence[Slot], embeddings: Tensor, nbytes: int | None = None):
        self._slots, self._embeddings = slots, embeddings
        most = MODULATION_BYTES if nbytes is None else nbytes
        self._at_once = max(1, most // nbytes_of_a_step(slots, embeddings))
        self._first, self._ahead = 0, embeddings[:0]  # first step and modulation of the steps computed ahead

    def __call__(self, step: int) -> Tensor:
        """The modulation of a step: [rows, vectors, width]."""
        if not self._first <= step < self._first + len(self._ahead):
            self._first = step
            self._ahead = modulate(self._slots, self._embeddings[step : step + self._at_once])
        return self._ahead[step - self._first]


def nbytes_of_a_step(slots: Sequence[Slot], embeddings: Tensor) -> int:
    """Bytes of the modulation of one step of [n, rows, width] embeddings."""
    rows, width = embeddings.shape[-2:]
    return rows * count_vectors(slots) * width * embeddings.itemsize
