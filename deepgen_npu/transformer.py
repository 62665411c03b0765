"""One evaluation of the DiT, with reference images as extra image tokens.

The stock ``SD3Transformer2DModel`` has no argument for references, but its sub-modules suffice
(Kontext-style conditioning: the tokens of each reference follow the tokens of the target).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


def predict_velocity(
    transformer: SD3Transformer2DModel,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor,
    reference_latents: Sequence[Tensor] = (),
) -> Tensor:
    """The model's output for one step: the velocity noise - data of flow matching.

    Without references this is what ``transformer.forward`` computes. References are never noised, share
    the timestep and get the position grid of their own size; no segment embedding tells them apart.
    There is no mask: all rows of a batch have references of the same sizes.

    Args:
        transformer: The stock model.
        latents: [b, C, h, w] noisy target in scaled latent space.
        timestep: [b] in 0..1000, not divided by 1000.
        prompt_embeds: [b, L, joint_attention_dim].
        pooled_prompt_embeds: [b, pooled_projection_dim].
        reference_latents: Each [b, C, h_k, w_k], in the order in which the prompt counts them.

    Returns:
        [b, C, h, w].
    """
    batch, _, height, width = latents.shape
    tokens = [transformer.pos_embed(image) for image in (latents, *reference_latents)]
    target_tokens = tokens[0].shape[1]
    hidden_states = torch.cat(tokens, dim=1)
    temb = transformer.time_text_embed(timestep, pooled_prompt_embeds)
    encoder_hidden_states = transformer.context_embedder(prompt_embeds)
    for block in transformer.transformer_blocks:
        encoder_hidden_states, hidden_states = block(
            hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb
        )
    # norm_out and proj_out work token by token, so only the target's tokens need them.
    hidden_states = transformer.norm_out(hidden_states[:, :target_tokens], temb)
    hidden_states = transformer.proj_out(hidden_states)

    patch = transformer.config["patch_size"]
    rows, columns = height // patch, width // patch
    hidden_states = hidden_states.reshape(batch, rows, columns, patch, patch, -1)
    return hidden_states.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
