"""Stage 1: from prompts and reference images to `Conditioning`.

    texts, references -> tokens -> VLM -> stacked hidden states -> connector -> embeddings
    references        -> VAE    -> reference latents

`pipeline` checks the arguments before it calls these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .conditioning import Conditioning
from .encoding_cache import ReferenceImage
from .images import to_pixels
from .memory import Workload, run_with_memory_retry
from .model import autoencoder
from .model.float16 import sum_dtype
from .model.numerics import require_finite
from .model.vision_language import stacked_hidden_states
from .model.vision_tower import encode_references
from .prompts import tokenize


if TYPE_CHECKING:
    from PIL import Image

    from .components import Components


Embeds = tuple[Tensor, Tensor, Tensor, Tensor]
"""prompt_embeds [b, L, D], pooled_prompt_embeds [b, P], and the same two of the negative prompt."""


def references(images: Sequence[Image.Image], height: int, width: int) -> list[ReferenceImage]:
    """Reference images, resized to the output's ``height`` and ``width`` in pixels."""
    return [ReferenceImage.of(to_pixels(image, height, width)) for image in images]


def encode(
    components: Components,
    prompts: Sequence[str],
    negative_prompt: str,
    groups: Sequence[Sequence[ReferenceImage]],
    height: int,
    width: int,
) -> list[Conditioning]:
    """A `Conditioning` for each group of references, with a row for each prompt.

    All groups go through one part of the model before the next, so that each part is moved to the device once. What
    is in ``components.encodings``, or given twice, is not encoded again.

    Args:
        components: The parts, their placement and their cache.
        prompts: Each becomes a row of every conditioning.
        negative_prompt: The same for all rows.
        groups: The references of each conditioning, each [3, height, width]; [[]] to generate.
        height: Of the image to make, in pixels.
        width: Of the image to make, in pixels.
    """
    embeds = embed(components, prompts, negative_prompt, groups)
    latents: dict[Hashable, Tensor] = {}
    for reference in (reference for group in groups for reference in group):
        if reference.name not in latents:
            make = partial(encode_image, components, reference.pixels[None])
            latents[reference.name] = _cached(components, "latents", reference, make)
    return [
        Conditioning(*one, height, width, [latents[reference.name] for reference in group])
        for one, group in zip(embeds, groups, strict=True)
    ]


def embed(
    components: Components,
    prompts: Sequence[str],
    negative_prompt: str,
    groups: Sequence[Sequence[ReferenceImage]],
) -> list[Embeds]:
    """The text side alone, VLM and connector: for each group of references the embeddings of all prompts."""
    cache = components.encodings
    keys = [("embeds", tuple(prompts), negative_prompt, *(one.name for one in group)) for group in groups]
    embeds: dict[Hashable, Any] = {key: cache.get(key) for key in keys}
    new = {key: group for key, group in zip(keys, groups, strict=True) if embeds[key] is None}
    # All groups through the VLM first, so that each part is moved to the device once.
    stacked = {key: _stack_states(components, prompts, negative_prompt, group) for key, group in new.items()}
    for key in new:
        embeds[key] = _connect(components, stacked.pop(key))
        cache.put(key, embeds[key])
    return [embeds[key] for key in keys]


def encode_image(components: Components, pixels: Tensor) -> Tensor:
    """From pixels [b, 3, H, W] in [-1, 1] to the mode of the VAE's posterior: [b, C, H/8, W/8] in scaled space."""
    vae = components.vae

    def run(device: torch.device) -> Tensor:
        return autoencoder.scale(vae, autoencoder.encode(vae, pixels.to(device, vae.dtype)))

    return run_with_memory_retry(components, Workload("vae", *pixels.shape[-2:]), run)


def _stack_states(
    components: Components, prompts: Sequence[str], negative_prompt: str, references: Sequence[ReferenceImage]
) -> Tensor:
    """The VLM's hidden states of b prompts and b negative prompts: [2b, L, states x hidden]."""
    vlm, template = components.vlm, components.prompt_template
    texts = [*prompts, *[negative_prompt] * len(prompts)]
    cells: list[tuple[int, int]] = []
    if references:
        cell = components.sizes.vision_cell
        cells = [(one.pixels.shape[1] // cell, one.pixels.shape[2] // cell) for one in references]
        texts = [template.for_editing(text, [rows * columns for rows, columns in cells]) for text in texts]
    else:
        texts = [template.for_generation(text) for text in texts]
    input_ids, valid = tokenize(components.tokenizer, texts)  # [2b, S], [2b, S]

    def run(device: torch.device) -> Tensor:
        def features_of(pixels: Tensor) -> Tensor:  # [3, H, W] to [tokens, hidden]
            return encode_references(vlm, pixels[None].to(device, vlm.dtype))[0]

        features = None
        if references:
            # One at a time, so that the features of an image do not depend, in the last bit, on the other images.
            each = [_cached(components, "vision", one, partial(features_of, one.pixels)) for one in references]
            features = torch.cat([tokens.to(device) for tokens in each])[None]  # [1, tokens of all references, hidden]
        meta_queries = components.connector.meta_queries.to(device, vlm.dtype)  # [queries, hidden]
        return stacked_hidden_states(vlm, input_ids, valid, meta_queries, features, cells)

    height, width = references[0].pixels.shape[1:] if references else (0, 0)
    image_tokens = sum(rows * columns for rows, columns in cells)
    text_tokens = input_ids.shape[1] + components.connector.num_queries - image_tokens
    workload = Workload("vlm", height, width, len(texts), len(references), text_tokens)
    return run_with_memory_retry(components, workload, run)


def _connect(components: Components, stacked: Tensor) -> Embeds:
    """Stacked states [2b, L, states x hidden] through the connector, split into prompts and negative prompts."""
    connector, (rows, tokens) = components.connector, stacked.shape[:2]
    sequence, pooled = run_with_memory_retry(
        components,
        Workload("connector", 0, 0, rows, text_tokens=tokens),
        lambda device: connector(stacked.to(device, sum_dtype(connector.dtype))),
    )
    if connector.dtype == torch.float16:
        # Otherwise all steps would be drawn before the latents show it. Other dtypes need not wait for the device.
        for embeddings in (sequence, pooled):
            require_finite(embeddings, "The prompt embeddings", {"vlm": components.vlm, "connector": connector})
    prompt_embeds, negative_prompt_embeds = sequence.chunk(2)
    pooled_embeds, negative_pooled_embeds = pooled.chunk(2)
    return prompt_embeds, pooled_embeds, negative_prompt_embeds, negative_pooled_embeds


def _cached(components: Components, kind: str, reference: ReferenceImage, make: Callable[[], Tensor]) -> Tensor:
    """One kind of encoding of a reference: from the cache, or made and put there."""
    key = (kind, reference.name)
    if found := components.encodings.get(key):
        return found[0]
    encoded = make()
    components.encodings.put(key, (encoded,))
    return encoded
