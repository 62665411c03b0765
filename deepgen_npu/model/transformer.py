"""The DiT (SD3.5-medium), with reference images as extra image tokens.

The stock ``SD3Transformer2DModel`` has no argument for references, but its sub-modules suffice (Kontext-style
conditioning: the tokens of each reference follow the tokens of the target). Two forms of the same function:

* `predict_velocity` evaluates the stock blocks once, in the most readable form.
* `PreparedTransformer` is what the denoising loop uses. Whatever does not change from step to step is computed once:
  the adaptive norms' modulation of all steps (a third of the weights, which act on a single vector for each row),
  the tokens of context and references, the positions. A step is then a fixed sequence of operators on the device:
  no copy from the host, no wait, the same shapes, so that it can be captured in a graph.

Shapes below: rows are those of the batch (with guidance two for each image), T is the target's tokens, T + R those of
target and references together, L the context's, and ``width`` is heads x d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from .ops import attention, rms_norm


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

MODULATION_BYTES = 256 * 1024 * 1024
"""Modulation is computed ahead for as many steps as fit into this, at least one."""

_EPS = 1e-6
"""Of every norm in SD3's blocks (diffusers, JointTransformerBlock)."""


def predict_velocity(
    transformer: SD3Transformer2DModel,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor,
    reference_latents: Sequence[Tensor] = (),
) -> Tensor:
    """The model's output for one step: the velocity noise - data of flow matching.

    Without references this is what ``transformer.forward`` computes. References are never noised, share the timestep
    and get the position grid of their own size; no segment embedding distinguishes them. There is no mask: all rows of
    a batch have references of the same sizes.

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
    height, width = latents.shape[-2:]
    tokens = [transformer.pos_embed(image) for image in (latents, *reference_latents)]  # [b, tokens, width] each
    target_tokens = tokens[0].shape[1]
    hidden_states = torch.cat(tokens, dim=1)  # [b, T + R, width]
    temb = transformer.time_text_embed(timestep, pooled_prompt_embeds)  # [b, width]
    encoder_hidden_states = transformer.context_embedder(prompt_embeds)  # [b, L, width]
    for block in transformer.transformer_blocks:
        encoder_hidden_states, hidden_states = block(
            hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb
        )
    # norm_out and proj_out work token by token, so only the target's tokens need them.
    hidden_states = transformer.norm_out(hidden_states[:, :target_tokens], temb)  # [b, T, width]
    return _to_latents(transformer.proj_out(hidden_states), height, width, transformer.config["patch_size"])


def _to_latents(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """[b, tokens, patch x patch x C] in raster order to [b, C, height, width]."""
    batch, rows, columns = len(tokens), height // patch, width // patch
    tokens = tokens.reshape(batch, rows, columns, patch, patch, -1)
    return tokens.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


@dataclass(frozen=True)
class _Slot:
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


class PreparedTransformer:
    """The DiT for one run: fixed conditioning, sizes and timesteps.

    Args:
        transformer: The stock model.
        timesteps: [n] in 0..1000, on the model's device.
        prompt_embeds: [rows, L, joint_attention_dim].
        pooled_prompt_embeds: [rows, pooled_projection_dim].
        reference_latents: Each [rows, C, h_k, w_k].
        height: Of the latents.
        width: Of the latents.
    """

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        reference_latents: Sequence[Tensor],
        height: int,
        width: int,
    ):
        self.transformer: Any = transformer
        self.height, self.width = height, width
        self.patch = transformer.config["patch_size"]
        self.blocks: list[Any] = list(transformer.transformer_blocks)
        self.context = transformer.context_embedder(prompt_embeds)  # [rows, L, width]
        self.references = [transformer.pos_embed(latents) for latents in reference_latents]  # [rows, tokens, width]
        self.positions = self.transformer.pos_embed.cropped_pos_embed(height, width)  # [1, T, width]
        self.slots = _slots(self.blocks, self.transformer.norm_out)
        self._embeddings = self._time_and_text(timesteps, pooled_prompt_embeds)  # [n, rows, width]
        self._first, self._ahead = 0, self._embeddings[:0]  # first step and modulation of the steps computed ahead

    def _time_and_text(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """silu of the embedding of time and text: [n, rows, width]."""
        embed = self.transformer.time_text_embed
        time = embed.timestep_embedder(embed.time_proj(timesteps).to(pooled.dtype))  # [n, width]
        return F.silu(time[:, None] + embed.text_embedder(pooled))

    def modulation(self, step: int) -> Tensor:
        """All shifts, scales (one added) and gates of a step: [rows, vectors, width]."""
        if not self._first <= step < self._first + len(self._ahead):
            self._first = step
            self._ahead = self._modulate(step)
        return self._ahead[step - self._first]

    def _modulate(self, first: int) -> Tensor:
        """`modulation` of this step and as many further ones as fit: [steps, rows, vectors, width]."""
        rows, width = self._embeddings.shape[1:]
        vectors = sum(slot.vectors for slot in self.slots)
        fitting = MODULATION_BYTES // (rows * vectors * width * self._embeddings.itemsize)
        embeddings = self._embeddings[first : first + max(1, fitting)]  # [steps, rows, width]
        ahead = embeddings.new_empty(len(embeddings), rows, vectors, width)
        for slot in self.slots:
            own = slot.linear(embeddings).unflatten(-1, (slot.vectors, width))  # [steps, rows, slot.vectors, width]
            ahead[:, :, slot.start : slot.start + slot.vectors] = own
            for scale in slot.scales:
                ahead[:, :, slot.start + scale] += 1
        return ahead

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity of one step.

        Args:
            latents: [b, C, h, w]; the rows are a multiple of b: the latents are repeated for each b of them.
            modulation: [rows, vectors, width] of the step.

        Returns:
            [rows, C, h, w].
        """
        embed = self.transformer.pos_embed
        target = embed.proj(latents).flatten(2).transpose(1, 2) + self.positions  # [b, T, width]
        copies = [target] * (len(self.context) // len(target))
        target = torch.cat(copies) if len(copies) > 1 else target  # [rows, T, width]
        image = torch.cat([target, *self.references], dim=1) if self.references else target  # [rows, T + R, width]
        context = self.context  # [rows, L, width]
        slots = iter(self.slots)

        def next_norm() -> list[Tensor]:  # [rows, 1, width] each
            slot = next(slots)
            return [modulation[:, index, None] for index in range(slot.start, slot.start + slot.vectors)]

        for block in self.blocks:
            image, context = _block(block, image, context, next_norm(), next_norm())
        scale, shift = next_norm()
        image = torch.addcmul(shift, _normalised(image[:, : target.shape[1]]), scale)  # [rows, T, width]
        return _to_latents(self.transformer.proj_out(image), self.height, self.width, self.patch)


def _slots(blocks: Sequence[Any], norm_out: Any) -> list[_Slot]:
    """The adaptive norms in the order in which a step meets them."""
    slots: list[_Slot] = []

    def add(linear: Any, scales: tuple[int, ...]) -> None:
        start = slots[-1].start + slots[-1].vectors if slots else 0
        slots.append(_Slot(linear, start, linear.out_features // linear.in_features, scales))

    # Orders of diffusers' AdaLayerNormZero (shift, scale, gate of attention, then of the feed-forward),
    # SD35AdaLayerNormZeroX (the same and the second attention's) and AdaLayerNormContinuous (scale, shift).
    for block in blocks:
        add(block.norm1.linear, (1, 4, 7) if block.use_dual_attention else (1, 4))
        add(block.norm1_context.linear, (0,) if block.context_pre_only else (1, 4))
    add(norm_out.linear, (0,))
    return slots


def _normalised(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension, without weights: [..., width] to [..., width]."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


def _block(
    block: Any, image: Tensor, context: Tensor, of_image: list[Tensor], of_context: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """A block of MMDiT-X (diffusers' JointTransformerBlock) with modulation that was computed before.

    Args:
        block: The stock block.
        image: [rows, T + R, width].
        context: [rows, L, width].
        of_image: Modulation of the image tokens, [rows, 1, width] each: 6, with a second attention 9.
        of_context: Modulation of the context: 6, in the last block 2.

    Returns:
        Image and context, shaped as before.
    """
    shift, scale, gate, shift_ff, scale_ff, gate_ff = of_image[:6]
    normalised = _normalised(image)  # [rows, T + R, width]
    normalised_context = _normalised(context)  # [rows, L, width]
    if block.context_pre_only:
        scale_context, shift_context = of_context
    else:
        shift_context, scale_context = of_context[:2]
    attended, attended_context = _joint_attention(
        block.attn,
        torch.addcmul(shift, normalised, scale),
        torch.addcmul(shift_context, normalised_context, scale_context),
    )  # [rows, T + R, width], [rows, L, width]
    image = torch.addcmul(image, gate, attended)  # [rows, T + R, width]
    if block.use_dual_attention:
        shift_2, scale_2, gate_2 = of_image[6:]
        image = torch.addcmul(image, gate_2, _self_attention(block.attn2, torch.addcmul(shift_2, normalised, scale_2)))
    image = torch.addcmul(image, gate_ff, block.ff(torch.addcmul(shift_ff, _normalised(image), scale_ff)))
    if not block.context_pre_only:
        gate_context, shift_ff_context, scale_ff_context, gate_ff_context = of_context[2:]
        context = torch.addcmul(context, gate_context, attended_context)  # [rows, L, width]
        modulated = torch.addcmul(shift_ff_context, _normalised(context), scale_ff_context)  # [rows, L, width]
        context = torch.addcmul(context, gate_ff_context, block.ff_context(modulated))  # [rows, L, width]
    return image, context


def _heads(projected: Tensor, heads: int, norm: Any = None) -> Tensor:
    """[rows, tokens, heads x d] to [rows, tokens, heads, d]; queries and keys are normalised."""
    split = projected.unflatten(-1, (heads, -1))  # [rows, tokens, heads, d]
    return split if norm is None else rms_norm(split, norm.weight, norm.eps)


def _self_attention(block: Any, x: Tensor) -> Tensor:
    """The second attention of a dual block, of the image tokens alone: [rows, T + R, width] to the same."""
    q = _heads(block.to_q(x), block.heads, block.norm_q)  # [rows, T + R, heads, d]
    k = _heads(block.to_k(x), block.heads, block.norm_k)  # [rows, T + R, heads, d]
    v = _heads(block.to_v(x), block.heads)  # [rows, T + R, heads, d]
    return block.to_out[0](attention(q, k, v).flatten(2))  # [rows, T + R, width]


def _joint_attention(block: Any, image: Tensor, context: Tensor) -> tuple[Tensor, Tensor | None]:
    """Image tokens [rows, T + R, width] and context tokens [rows, L, width] attend to all of both.

    Returns:
        The same shapes; None for the context in the last block, which has no output for it.
    """
    heads = block.heads
    # Pairs of [rows, T + R, heads, d] and [rows, L, heads, d].
    q = [_heads(block.to_q(image), heads, block.norm_q), _heads(block.add_q_proj(context), heads, block.norm_added_q)]
    k = [_heads(block.to_k(image), heads, block.norm_k), _heads(block.add_k_proj(context), heads, block.norm_added_k)]
    v = [_heads(block.to_v(image), heads), _heads(block.add_v_proj(context), heads)]
    attended = attention(torch.cat(q, dim=1), torch.cat(k, dim=1), torch.cat(v, dim=1))  # [rows, T + R + L, heads, d]
    attended = attended.flatten(2)  # [rows, T + R + L, width]
    tokens = image.shape[1]
    of_context = None if block.context_pre_only else block.to_add_out(attended[:, tokens:])  # [rows, L, width]
    return block.to_out[0](attended[:, :tokens]), of_context
