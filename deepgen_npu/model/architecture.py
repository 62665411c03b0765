"""Facts about the architecture that need no torch."""

from __future__ import annotations


VISION_SCALE = 28 / 32
"""The vision tower sees images at this scale, so that one of its merge cells (28 pixels) covers exactly 32 pixels,
which are 2 x 2 patches of the DiT (original: interpolate with scale_factor 28/32)."""


def stacked_states(num_hidden_layers: int) -> list[int]:
    """Indices of the hidden states that the connector stacks, deepest first.

    State 0 is the input embedding and state k the output of layer k - 1. The published model has 36
    layers and uses [35, 29, 23, 17, 11, 5] (range(num_layers - 1, 0, -6) in the original).
    """
    return list(range(num_hidden_layers - 1, 0, -6))
