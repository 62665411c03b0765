"""A DiT at the depth of DeepGen 1.0 (24 blocks, 13 of them dual) and narrow, with random weights; what it is given."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from deepgen_npu.conditioning import Conditioning


BLOCKS, DUAL_BLOCKS = 24, 13
SHIFT = 3.0
"""Of the published schedule."""


def transformer(heads: int = 2, width_of_head: int = 16, largest_side: int = 16) -> SD3Transformer2DModel:
    """Ready for inference, on the CPU in float32.

    Args:
        heads: Of each attention.
        width_of_head: d. Context and caption have heads x d channels, too.
        largest_side: Of an image, in tokens.
    """
    torch.manual_seed(0)
    width = heads * width_of_head
    model = SD3Transformer2DModel(
        sample_size=largest_side,
        patch_size=2,
        in_channels=16,
        num_layers=BLOCKS,
        attention_head_dim=width_of_head,
        num_attention_heads=heads,
        joint_attention_dim=width,
        caption_projection_dim=width,
        pooled_projection_dim=24,
        out_channels=16,
        pos_embed_max_size=largest_side,
        dual_attention_layers=tuple(range(DUAL_BLOCKS)),
        qk_norm="rms_norm",
    )
    for parameter in model.parameters():
        scale = 0.2 if parameter.ndim == 1 else 0.2 * (32 / width) ** 0.5
        parameter.data.normal_(0.5 if parameter.ndim == 1 else 0, scale)
    return model.eval().requires_grad_(False)


def conditioning(
    model: SD3Transformer2DModel, references: int, tokens: int = 20, side: int = 8, device: torch.device | str = "cpu"
) -> Conditioning:
    """Of one image.

    Args:
        model: Which `transformer` made.
        references: Number of reference images, of the same size.
        tokens: Of the context.
        side: Of the image, in latent cells.
        device: Where it is.
    """
    generator = torch.Generator().manual_seed(1)
    width, pooled = model.config["joint_attention_dim"], model.config["pooled_projection_dim"]

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, model.dtype)

    embeds = (noise(1, tokens, width), noise(1, pooled), noise(1, tokens, width), noise(1, pooled))
    return Conditioning(*embeds, 8 * side, 8 * side, [noise(1, 16, side, side) for _ in range(references)])


def latents(side: int = 8, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise to begin with, [1, 16, side, side]."""
    return torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(2)).to(device, dtype)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """A new one: it counts the steps of its run."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)
