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
target and references together, L the context's, and ``width`` is heads x d. Of the last block only the target is
read: Q is T there, and T + R before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .adaptive_norm import modulated_norms
from .float16 import add_gated, sum_dtype
from .modulation import ModulationAhead, Slot, slots_of, time_and_text
from .ops import attention, rms_norm, with_weight
from .positions import positions
from .projections import project


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

    tokens, last = target.shape[1], len(transformer.transformer_blocks) - 1
    for index, block in enumerate(transformer.transformer_blocks):
        of_image, of_context = next_norm(), next_norm()
        if around_block is None:
            read = tokens if index == last else image.shape[1]
            image, context = _block(block, image, context, of_image, of_context, read)
        else:  # which expects of each block what goes into it
            run = partial(_block, block, of_image=of_image, of_context=of_context, read=image.shape[1])
            image, context = around_block(index, run, image, context)
    scale, shift = next_norm()
    image = modulated_norms(image[:, :tokens], [(shift, scale)])[0]  # [rows, T, width]
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


def _block(
    block: Any, image: Tensor, context: Tensor, of_image: list[Tensor], of_context: list[Tensor], read: int
) -> tuple[Tensor, Tensor]:
    """A block of MMDiT-X (diffusers' JointTransformerBlock) with modulation that was computed before.

    Args:
        block: The stock block.
        image: [rows, T + R, width], in `float16.sum_dtype`.
        context: [rows, L, width], in the same.
        of_image: Modulation of the image tokens, [rows, 1, width] each: 6, with a second attention 9. Its dtype is
            that of the weights.
        of_context: Modulation of the context: 6, in the last block 2.
        read: How many image tokens are read after this block, Q, from the first on.

    Returns:
        Image [rows, Q, width] and context [rows, L, width], which the last block leaves as it is.
    """
    shift, scale, gate, shift_ff, scale_ff, gate_ff = of_image[:6]
    second = [(of_image[6], of_image[7])] if block.use_dual_attention else []
    normalised = modulated_norms(image, [(shift, scale), *second])  # [rows, T + R, width], once or twice
    last = block.context_pre_only
    of_norm = (of_context[1], of_context[0]) if last else (of_context[0], of_context[1])
    normalised_context = modulated_norms(context, [of_norm])[0]  # [rows, L, width]
    attended, attended_context = _joint_attention(block.attn, normalised[0], normalised_context, read)
    image = image[:, :read]  # [rows, Q, width]
    image = add_gated(image, gate, attended)  # [rows, Q, width]
    if block.use_dual_attention:
        image = add_gated(image, of_image[8], _self_attention(block.attn2, normalised[1], read))  # [rows, Q, width]
    image = add_gated(image, gate_ff, block.ff(modulated_norms(image, [(shift_ff, scale_ff)])[0]))
    if attended_context is not None:
        gate_context, shift_ff_context, scale_ff_context, gate_ff_context = of_context[2:]
        context = add_gated(context, gate_context, attended_context)  # [rows, L, width]
        modulated = modulated_norms(context, [(shift_ff_context, scale_ff_context)])[0]  # [rows, L, width]
        context = add_gated(context, gate_ff_context, block.ff_context(modulated))  # [rows, L, width]
    return image, context


def _heads(projected: Tensor, heads: int, norm: Any = None) -> Tensor:
    """[rows, tokens, heads x d] to [rows, tokens, heads, d]; queries and keys are normalised."""
    split = projected.unflatten(-1, (heads, -1))  # [rows, tokens, heads, d]
    return split if norm is None else with_weight(norm, split, lambda weight: rms_norm(split, weight, norm.eps))


def _of_image(block: Any, x: Tensor, read: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [rows, Q, heads, d] of the tokens that are read, keys and values [rows, T + R, heads, d] of all.

    Args:
        block: An attention.
        x: [rows, T + R, width].
        read: Q.
    """
    if read == x.shape[1]:
        q, k, v = project((block.to_q, block.to_k, block.to_v), x)
    else:
        q = block.to_q(x[:, :read].contiguous())  # of a slice it is a product of batches, and a sum
        k, v = project((block.to_k, block.to_v), x)
    heads = block.heads
    return _heads(q, heads, block.norm_q), _heads(k, heads, block.norm_k), _heads(v, heads)


def _self_attention(block: Any, x: Tensor, read: int) -> Tensor:
    """The second attention of a dual block, of the image tokens alone: [rows, T + R, width] to [rows, Q, width]."""
    return block.to_out[0](attention(*_of_image(block, x, read)).flatten(2))


def _joint_attention(block: Any, image: Tensor, context: Tensor, read: int) -> tuple[Tensor, Tensor | None]:
    """Image tokens [rows, T + R, width] and context tokens [rows, L, width] attend to all of both.

    Image and context ask apart: in one attention their results would be slices of one tensor, which costs a copy, or
    a launch for the bias of each.

    Returns:
        [rows, Q, width] and [rows, L, width]; None for the context in the last block, where nothing reads it.
    """
    heads, last = block.heads, block.context_pre_only
    q, k, v = _of_image(block, image, read)
    *of_context, k_context, v_context = project(
        (*(() if last else (block.add_q_proj,)), block.add_k_proj, block.add_v_proj), context
    )  # [rows, L, width] each
    k = torch.cat([k, _heads(k_context, heads, block.norm_added_k)], dim=1)  # [rows, T + R + L, heads, d]
    v = torch.cat([v, _heads(v_context, heads)], dim=1)  # [rows, T + R + L, heads, d]
    attended = block.to_out[0](attention(q, k, v).flatten(2))  # [rows, Q, width]
    if last:
        return attended, None
    q_context = _heads(of_context[0], heads, block.norm_added_q)  # [rows, L, heads, d]
    return attended, block.to_add_out(attention(q_context, k, v).flatten(2))
