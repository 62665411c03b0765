"""The values of random checkpoints: the same for the same seed on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


_PIECE = 4 * 1024 * 1024  # elements


def random_tensor(
    name: str,
    shape: tuple[int, ...],
    transformer: Mapping[str, Any],
    generator: torch.Generator,
    stored: torch.dtype,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_bytes: Callable[[int], object] | None = None,
) -> Tensor:
    """A stored tensor, drawn in pieces so that only one of them takes memory on top of it.

    Args:
        name: As stored; see `random_values`.
        shape: Of the tensor.
        transformer: Config of the DiT.
        generator: Of the CPU, so that all devices get the same values.
        stored: The dtype of its file, to which the values are rounded.
        dtype: Of the result; None for ``stored``.
        device: Of the result.
        on_bytes: Called with the number of bytes of each piece that was drawn.
    """
    tensor = torch.empty(shape, dtype=dtype or stored, device=device)
    flat, start = tensor.view(-1), 0
    for piece in random_values(name, shape, transformer, generator):
        end = start + piece.numel()
        flat[start:end].copy_(piece.view(-1).to(stored))
        start = end
        if on_bytes is not None:
            on_bytes(piece.numel() * tensor.itemsize)
    return tensor


def random_values(
    name: str, shape: tuple[int, ...], transformer: Mapping[str, Any], generator: torch.Generator
) -> Iterator[Tensor]:
    """A stored tensor's values in order, in pieces in float32 on the CPU.

    Args:
        name: As stored; it decides the scale.
        shape: Of the tensor.
        transformer: Config of the DiT, whose position table is computed instead of drawn.
        generator: Of the CPU.
    """
    if name == "pos_embed.pos_embed":
        return _position_table(transformer)
    return _random_pieces(name, shape, generator)


def _random_pieces(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    """A tensor's values, at most `_PIECE` at a time.

    Values are uniform: uniform numbers are exact on every processor, while the logarithm and cosine behind
    normal ones are rounded differently by different vector units.
    """
    count = math.prod(shape)
    mean = 0.0
    if len(shape) > 1:
        std = (count // shape[0]) ** -0.5  # fan in
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            # Sharper attention in VLM and connector: flat attention averages away the few words of an edit
            # among hundreds of image tokens.
            std *= 2
    elif name.endswith(".weight"):
        mean, std = 1.0, 0.05  # one-dimensional weights belong to norms
    else:
        std = 0.05
    for start in range(0, count, _PIECE):
        piece = torch.rand(min(_PIECE, count - start), generator=generator, dtype=torch.float32)
        yield piece.sub_(0.5).mul_(std * math.sqrt(12)).add_(mean)


def _position_table(config: Mapping[str, Any]) -> Iterator[Tensor]:
    """The sin/cos table [1, n * n, width] of diffusers' ``PatchEmbed``, one of n rows [n, width] at a time.

    The first half of the channels encodes the column, the second the row. The class itself computes the
    full table in float64, which takes 2 GB for the published size.
    """
    from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid

    side = config["pos_embed_max_size"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    base = config["sample_size"] // config["patch_size"]
    axis = torch.arange(side, dtype=torch.float32) / (side / base)
    table = get_1d_sincos_pos_embed_from_grid(width // 2, axis, output_type="pt").float()
    for row in table:
        yield torch.cat([table, row.expand_as(table)], dim=1)
