"""The DiT's table of positions, which stays on the host.

The published table has 432 MiB in bfloat16, of which an image of 512 x 512 reads 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

STAYS_ON_HOST = "pos_embed.pos_embed"
"""Name of the table among the DiT's tensors."""


def keep_positions_on_host(transformer: SD3Transformer2DModel) -> None:
    """Let the table of positions stay where it is when the model moves."""
    embed: Any = transformer.pos_embed
    embed.__class__ = _with_positions_on_host(type(embed))


@cache
def _with_positions_on_host(patch_embed: Any) -> type:
    """A subclass of diffusers' PatchEmbed whose table is no longer moved."""

    class HostPositions(patch_embed):
        def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
            table = self._buffers.pop("pos_embed", None)
            try:
                return super()._apply(fn, recurse)
            finally:
                if table is not None:
                    self._buffers["pos_embed"] = table

    return HostPositions


def take_out_positions(transformer: Any) -> None:
    """Make the table of positions a plain attribute, for a host that moves every buffer by itself."""
    embed = transformer.pos_embed
    if (table := embed._buffers.pop("pos_embed", None)) is not None:
        embed.pos_embed = table


def positions(transformer: Any, height: int, width: int, like: Tensor) -> Tensor:
    """The positions of latents of ``height`` x ``width``: [1, T, width], on the device and in the dtype of ``like``.

    Raises:
        ValueError: When the table does not cover the size.
    """
    return transformer.pos_embed.cropped_pos_embed(height, width).to(like.device, like.dtype)
