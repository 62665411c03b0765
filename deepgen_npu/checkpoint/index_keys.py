"""Keys of ``model_index.json`` that are this library's own; the published model has none of them."""

from __future__ import annotations


TRAINED_SIDE_KEY = "_deepgen_trained_side"
"""Side in pixels of the square whose area the model was trained at."""

LATENT_RGB_FACTORS_KEY = "_deepgen_latent_rgb_factors"
"""For a VAE that is not SD3's: what its latents look like. A row [r, g, b] for each channel and a last one to add, in
scaled space, for colours in [-1, 1]."""

RANDOM_WEIGHTS_KEY = "_deepgen_random_weights"
"""True for random weights instead of trained ones."""
