"""The DiT (SD3.5-medium), with reference images as extra image tokens.

The stock ``SD3Transformer2DModel`` has no argument for references, but its sub-modules suffice (Kontext-style
conditioning: the tokens of each reference follow the tokens of the target). Two forms of the same function:

* `predict_velocity` evaluates the stock blocks once, in the most readable form.
* `prepare`, the modulation of `modulation.py` and `step` are what every sampling uses, the library's and ComfyUI's.
  Whatever does not change from step to step is computed once: the modulation of the adaptive norms, the tokens of
  context and references, the positions. A step is then a fixed sequence of operators on the device: no copy from the
  host, no wait, the same shapes, so that it can be captured in a graph.

Each takes the stock model, or any module with the same children: a host may let their weights come from elsewhere
(see `ops.with_weight`).

Shapes below: rows are those of the batch (with guidance two for each image), T is the target's tokens, T + R those of
target and references together, L the context's, and ``width`` is heads x d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .float16 import add_gated, sum_dtype
from .modulation import ModulationAhead, Slot, slots_of, time_and_text
from .ops import attention, rms_norm, with_weight
from .positions import positions


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

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
    tokens = [embed_patches(transformer, image) for image in (latents, *reference_latents)]  # [b, tokens, width] each
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


def embed_patches(transformer: Any, latents: Tensor) -> Tensor:
    """Latents [b, C, h, w] to tokens with their positions, [b, T, width]."""
    tokens = _project_patches(transformer, latents)
    height, width = latents.shape[-2:]
    return tokens + positions(transformer, height, width, tokens)


def _project_patches(transformer: Any, latents: Tensor) -> Tensor:
    """[b, C, h, w] to [b, T, width]."""
    return transformer.pos_embed.proj(latents).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Prepared:
    """What does not change during a run.

    Attributes:
        context: [rows, L, width], in `float16.sum_dtype`.
        references: Tokens of each reference, [rows, tokens, width], in the same.
        positions: Of the target, [1, T, width].
        height, width: Of the latents.
    """

    context: Tensor
    references: list[Tensor]
    positions: Tensor
    height: int
    width: int

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        references = {f"reference {index}": tokens for index, tokens in enumerate(self.references)}
        return {"context": self.context, "positions": self.positions, **references}

    def copy_from(self, other: Prepared) -> None:
        """Take the values of another run with the same shapes."""
        for own, tensor in zip(self.tensors().values(), other.tensors().values(), strict=True):
            own.copy_(tensor)


def prepare(
    transformer: Any, prompt_embeds: Tensor, reference_latents: Sequence[Tensor], height: int, width: int
) -> Prepared:
    """Compute what does not change during a run.

    Args:
        transformer: The DiT.
        prompt_embeds: [rows, L, joint_attention_dim].
        reference_latents: Each [rows, C, h_k, w_k].
        height: Of the latents.
        width: Of the latents.
    """
    context = transformer.context_embedder(prompt_embeds)  # [rows, L, width]
    wide = sum_dtype(context.dtype)
    # [rows, tokens, width] each
    references = [embed_patches(transformer, latents).to(wide) for latents in reference_latents]
    return Prepared(context.to(wide), references, positions(transformer, height, width, context), height, width)


Block = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""A block with its modulation: image [rows, T + R, width] and context [rows, L, width] to the same."""

AroundBlock = Callable[[int, Block, Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""Called with the index of a block, the block, image and context: returns what goes into the next block."""


def step(
    transformer: Any,
    slots: Sequence[Slot],
    prepared: Prepared,
    latents: Tensor,
    modulation: Tensor,
    around_block: AroundBlock | None = None,
) -> Tensor:
    """The velocity of one step.

    Args:
        transformer: The DiT.
        slots: As `modulation.slots_of` returns them.
        prepared: As `prepare` returns it.
        latents: [b, C, h, w]; the rows are a multiple of b: the latents are repeated for each b of them.
        modulation: [rows, vectors, width] of the step.
        around_block: Called in place of each block.

    Returns:
        [rows, C, h, w].
    """
    target = _project_patches(transformer, latents) + prepared.positions  # [b, T, width]
    copies = [target] * (len(prepared.context) // len(target))
    target = (torch.cat(copies) if len(copies) > 1 else target).to(prepared.context.dtype)  # [rows, T, width]
    # [rows, T + R, width] and [rows, L, width]
    image = torch.cat([target, *prepared.references], dim=1) if prepared.references else target
    context = prepared.context
    remaining = iter(slots)

    def next_norm() -> list[Tensor]:  # [rows, 1, width] each
        slot = next(remaining)
        return [modulation[:, index, None] for index in range(slot.start, slot.start + slot.vectors)]

    for index, block in enumerate(transformer.transformer_blocks):
        of_image, of_context = next_norm(), next_norm()
        if around_block is None:
            image, context = _block(block, image, context, of_image, of_context)
        else:
            run = partial(_block, block, of_image=of_image, of_context=of_context)
            image, context = around_block(index, run, image, context)
    scale, shift = next_norm()
    image = torch.addcmul(shift, _normalised(image[:, : target.shape[1]], shift.dtype), scale)  # [rows, T, width]
    patch = transformer.config["patch_size"]
    return _to_latents(transformer.proj_out(image), prepared.height, prepared.width, patch)


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
        modulation_bytes: As ``nbytes`` of `ModulationAhead`.
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
        modulation_bytes: int | None = None,
    ):
        self._transformer = transformer
        self._slots = slots_of(transformer)
        self.prepared = prepare(transformer, prompt_embeds, reference_latents, height, width)
        embeddings = time_and_text(transformer, timesteps[:, None], pooled_prompt_embeds)  # [n, rows, width]
        self.modulation = ModulationAhead(self._slots, embeddings, modulation_bytes)
        """From the index of a step to its modulation, [rows, vectors, width]."""

    def __call__(self, latents: Tensor, modulation: Tensor) -> Tensor:
        """The velocity [rows, C, h, w] of one step; arguments as in `step`."""
        return step(self._transformer, self._slots, self.prepared, latents, modulation)


def _normalised(x: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm over the last dimension, without weights: [..., width] to [..., width] in ``dtype``."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPS).to(dtype)


def _block(
    block: Any, image: Tensor, context: Tensor, of_image: list[Tensor], of_context: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """A block of MMDiT-X (diffusers' JointTransformerBlock) with modulation that was computed before.

    Args:
        block: The stock block.
        image: [rows, T + R, width], in `float16.sum_dtype`.
        context: [rows, L, width], in the same.
        of_image: Modulation of the image tokens, [rows, 1, width] each: 6, with a second attention 9. Its dtype is
            that of the weights.
        of_context: Modulation of the context: 6, in the last block 2.

    Returns:
        Image and context, shaped as before.
    """
    shift, scale, gate, shift_ff, scale_ff, gate_ff = of_image[:6]
    dtype = shift.dtype
    normalised = _normalised(image, dtype)  # [rows, T + R, width]
    normalised_context = _normalised(context, dtype)  # [rows, L, width]
    if block.context_pre_only:
        scale_context, shift_context = of_context
    else:
        shift_context, scale_context = of_context[:2]
    attended, attended_context = _joint_attention(
        block.attn,
        torch.addcmul(shift, normalised, scale),
        torch.addcmul(shift_context, normalised_context, scale_context),
    )  # [rows, T + R, width], [rows, L, width]
    image = add_gated(image, gate, attended)  # [rows, T + R, width]
    if block.use_dual_attention:
        shift_2, scale_2, gate_2 = of_image[6:]
        image = add_gated(image, gate_2, _self_attention(block.attn2, torch.addcmul(shift_2, normalised, scale_2)))
    image = add_gated(image, gate_ff, block.ff(torch.addcmul(shift_ff, _normalised(image, dtype), scale_ff)))
    if not block.context_pre_only:
        gate_context, shift_ff_context, scale_ff_context, gate_ff_context = of_context[2:]
        context = add_gated(context, gate_context, attended_context)  # [rows, L, width]
        modulated = torch.addcmul(shift_ff_context, _normalised(context, dtype), scale_ff_context)  # [rows, L, width]
        context = add_gated(context, gate_ff_context, block.ff_context(modulated))  # [rows, L, width]
    return image, context


def _heads(projected: Tensor, heads: int, norm: Any = None) -> Tensor:
    """[rows, tokens, heads x d] to [rows, tokens, heads, d]; queries and keys are normalised."""
    split = projected.unflatten(-1, (heads, -1))  # [rows, tokens, heads, d]
    return split if norm is None else with_weight(norm, split, lambda weight: rms_norm(split, weight, norm.eps))


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
