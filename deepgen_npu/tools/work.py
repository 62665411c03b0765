"""How much a denoising step computes, from the shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


_FEED_FORWARD = 4
"""Width of the hidden layer of a feed-forward, in those of the model (diffusers, FeedForward)."""


def step_flops(
    config: Mapping[str, Any],
    latents: tuple[int, int],
    context_tokens: int,
    references: Sequence[tuple[int, int]] = (),
    images: int = 1,
    guided: bool = True,
) -> int:
    """Floating point operations of the matrix products and attentions of `model.transformer.step`.

    A multiplication and an addition are two. That is all but a thousandth of a step. The modulation is computed ahead
    of the steps and is not in them. Of the last block only the target's tokens are computed, and no queries of the
    context.

    Args:
        config: Of the DiT.
        latents: Height and width.
        context_tokens: Of a prompt, L.
        references: Height and width of the latents of each.
        images: Drawn at once.
        guided: Whether there are two rows for each image.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch, rows = config["patch_size"], images * (2 if guided else 1)
    target, *others = (height * width_ // patch**2 for height, width_ in (latents, *references))
    image, context = target + sum(others), context_tokens
    last = config["num_layers"] - 1

    def linear(tokens: int, inputs: int = width, outputs: int = width) -> int:
        return 2 * tokens * inputs * outputs

    def feed_forward(tokens: int) -> int:
        return 2 * linear(tokens, outputs=_FEED_FORWARD * width)

    def attention(queries: int, keys: int) -> int:  # scores, and the sum of values
        return 2 * 2 * queries * keys * width

    flops = 0
    for block in range(config["num_layers"]):
        read = target if block == last else image
        # Queries, keys and values, attention, output and feed-forward of the image tokens.
        flops += (
            linear(read) + 2 * linear(image) + attention(read, image + context) + linear(read) + feed_forward(read)
        )
        flops += 2 * linear(context)
        if block != last:
            flops += 2 * linear(context) + attention(context, image + context) + feed_forward(context)
        if block in (config.get("dual_attention_layers") or ()):
            flops += linear(read) + 2 * linear(image) + attention(read, image) + linear(read)
    flops += linear(target, outputs=patch**2 * (config.get("out_channels") or config["in_channels"]))
    # All rows of an image have the same latents.
    return rows * flops + images * linear(target, patch**2 * config["in_channels"])
