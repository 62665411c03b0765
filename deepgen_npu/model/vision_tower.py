"""The vision tower of the VLM (Qwen2.5-VL): from reference images to the vectors that replace image tokens.

The stock tower computes its windows from values read back from the device, and embeds patches with a Conv3D, which
Ascend does not support in bfloat16. All references of an edit have one size, known on the host, so that here the
windows are one more dimension of the batch, and the convolution, whose stride is its kernel, is a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .architecture import VISION_SCALE
from .float16 import sum_dtype


if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in [0, 1] that Qwen2-VL's image processor subtracts: those of CLIP."""

IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviations that it divides by: those of CLIP."""


def encode_references(vlm: Qwen2_5_VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Run the vision tower.

    Args:
        vlm: The model that the tower belongs to.
        pixels: [n, 3, H, W] in [-1, 1], in the model's dtype.

    Returns:
        [n, tokens, hidden]: one vector for each merge cell, in raster order.
    """
    visual: Any = vlm.model.visual
    config = vlm.config.vision_config
    # h and w are 28/32 of H and W.
    scaled = F.interpolate(pixels, scale_factor=VISION_SCALE, mode="bilinear", align_corners=False)  # [n, 3, h, w]
    # Mean and deviation stay float32, as in the published pipeline: the tower casts after normalisation.
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=pixels.device).view(1, 3, 1, 1)
    normalised = ((scaled + 1) / 2 - mean) / std  # [n, 3, h, w] float32
    patches = to_patches(normalised, config.patch_size, config.temporal_patch_size, config.spatial_merge_size)
    rows, columns = (side // config.patch_size for side in scaled.shape[-2:])
    if config._attn_implementation == "sdpa":
        return _run(visual, patches.to(pixels.dtype), rows, columns)
    grid = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)  # [n, 3]
    output = visual(patches.flatten(0, 1), grid_thw=grid)
    # transformers 5 returns an object whose pooler_output is what 4.x returns.
    merged = getattr(output, "pooler_output", output)  # [n x tokens, hidden]
    return merged.view(len(pixels), -1, merged.shape[-1])


def to_patches(pixels: Tensor, patch: int, temporal: int, merge: int) -> Tensor:
    """Cut images into the vectors that Qwen2-VL's image processor makes.

    Args:
        pixels: [n, 3, H, W], normalised; H and W are multiples of patch x merge.
        patch: Side of a patch, in pixels.
        temporal: Frames of a patch; an image is repeated for each.
        merge: Side of a merge cell, in patches.

    Returns:
        [n, patches, 3 x temporal x patch x patch], ordered by merge cell.
    """
    n, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cells = pixels.reshape(n, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [n, cell rows, cell columns, merge, merge, 3, patch, patch]
    frames = cells.unsqueeze(6).expand(
        *cells.shape[:6], temporal, *cells.shape[6:]
    )  # [..., 3, temporal, patch, patch]
    return frames.reshape(n, rows * columns, -1)


@dataclass(frozen=True)
class _Windows:
    """How the tower's attention windows divide a grid of merge cells. Windows at the far edges may be smaller.

    Attributes:
        size: Cells of a full window.
        order: [cells]: the cells window by window, each window in raster order.
        spread: [windows x size]: the index into ``order`` of each place of all windows; 0 where it is empty.
        present: [windows, size]: False where a place is empty; None when all windows are full.
        gather: [cells]: the place in ``spread`` of each entry of ``order``.
    """

    size: int
    order: Tensor
    spread: Tensor
    present: Tensor | None
    gather: Tensor

    @classmethod
    def of(cls, rows: int, columns: int, side: int) -> _Windows:
        """Divide rows x columns cells into windows of side x side."""
        cells = torch.arange(rows * columns).view(rows, columns)
        padded = F.pad(cells, (0, -columns % side, 0, -rows % side), value=-1)  # both multiples of side
        windows = padded.unflatten(1, (-1, side)).unflatten(0, (-1, side))  # [window rows, side, window columns, side]
        windows = windows.transpose(1, 2).flatten(2).flatten(0, 1)  # [windows, size]
        present = windows >= 0  # [windows, size]
        gather = present.flatten().nonzero().flatten()  # [cells]
        spread = torch.zeros(windows.numel(), dtype=torch.long)  # [windows x size]
        spread[gather] = torch.arange(len(gather))
        return cls(side * side, windows[present], spread, None if present.all() else present, gather)


class _Attention:
    """Attention of the tower for n images of one size, with T tokens each in the order of the windows."""

    def __init__(self, windows: _Windows, merge: int, images: int, device: torch.device):
        within = torch.arange(merge * merge)

        def tokens(cells: Tensor) -> Tensor:  # [cells] to [cells x merge x merge]
            return (cells[:, None] * merge * merge + within).flatten().to(device)

        self.size = windows.size * merge * merge
        self.spread = self.gather = self.mask = None
        if windows.present is None:
            return
        self.spread, self.gather = tokens(windows.spread), tokens(windows.gather)
        present = windows.present.repeat_interleave(merge * merge, dim=1)  # [windows, tokens of a full window]
        allowed = present[:, None, None].expand(-1, 1, self.size, self.size)
        self.mask = ops.attention_mask(allowed.repeat(images, 1, 1, 1).to(device))  # [n x windows, 1, size, size]

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All tokens of an image attend to each other. [n, T, heads, d] each."""
        return ops.attention(q, k, v)

    def windowed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The tokens of a window attend to each other. [n, T, heads, d] each."""
        attended = ops.attention(self._divide(q), self._divide(k), self._divide(v), self.mask)
        together = attended.unflatten(0, (len(q), -1)).flatten(1, 2)  # [n, windows x size, heads, d]
        return together if self.gather is None else together.index_select(1, self.gather)

    def _divide(self, x: Tensor) -> Tensor:
        """[n, T, heads, d] to [n x windows, tokens of a full window, heads, d]."""
        if self.spread is not None:
            x = x.index_select(1, self.spread)  # [n, windows x size, heads, d]
        return x.unflatten(1, (-1, self.size)).flatten(0, 1)


def _run(visual: Any, patches: Tensor, rows: int, columns: int) -> Tensor:
    """The tower for images of rows x columns patches.

    Args:
        visual: The stock tower.
        patches: [n, rows x columns, 3 x temporal x patch x patch], ordered by merge cell, on the device and in the
            dtype of the computation.
        rows: Of patches.
        columns: Of patches.

    Returns:
        [n, merge cells, hidden of the decoder], in raster order.
    """
    merge: int = visual.spatial_merge_size
    device, dtype = patches.device, patches.dtype
    windows = _Windows.of(rows // merge, columns // merge, visual.window_size // merge // visual.patch_size)
    order = windows.order.to(device)  # [cells]

    # T is rows x columns. From here on tokens are in the order of the windows.
    # The weight is [width, 3, temporal, patch, patch].
    hidden_states = ops.with_weight(
        visual.patch_embed.proj, patches, lambda weight: F.linear(patches, weight.flatten(1))
    ).to(sum_dtype(dtype))  # [n, T, width]
    hidden_states = hidden_states.unflatten(1, (-1, merge * merge)).index_select(1, order).flatten(1, 2)
    positions = _positions(rows, columns, merge)[windows.order].flatten(0, 1).to(device)  # [T, 2]
    angles = (positions[..., None] * visual.rotary_pos_emb.inv_freq.float()).flatten(1)  # [T, d/2]
    angles = torch.cat([angles, angles], dim=-1)[None, :, None]  # [1, T, 1, d]
    cos, sin = angles.cos(), angles.sin()

    attention = _Attention(windows, merge, len(patches), device)
    for index, block in enumerate(visual.blocks):
        attend = attention.full if index in visual.fullatt_block_indexes else attention.windowed
        projected = block.attn.qkv(ops.norm(block.norm1, hidden_states, dtype))  # [n, T, 3 x heads x d]
        q, k, v = projected.unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)  # [n, T, heads, d] each
        # Rotated in float32, as in transformers.
        q, k = (ops.rotary(x.float(), cos, sin).to(dtype) for x in (q, k))
        hidden_states = hidden_states + block.attn.proj(attend(q, k, v).flatten(2))  # [n, T, width]
        hidden_states = hidden_states + ops.gated_mlp(block.mlp, ops.norm(block.norm2, hidden_states, dtype))
    cells = ops.norm(visual.merger.ln_q, hidden_states, dtype).unflatten(1, (len(order), -1)).flatten(2)
    merged = visual.merger.mlp(cells)  # [n, cells, merge x merge x width] to [n, cells, hidden]
    return merged.index_select(1, windows.order.argsort().to(device))


def _positions(rows: int, columns: int, merge: int) -> Tensor:
    """(row, column) of each patch: [cells, merge x merge, 2]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    grid = torch.stack([row, column], dim=-1)  # [rows, columns, 2]
    cells = grid.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)
    return cells.reshape(-1, merge * merge, 2)
