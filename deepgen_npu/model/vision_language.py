"""The VLM (Qwen2.5-VL) as DeepGen uses it: one pass over prompt and meta queries, no text generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .architecture import stacked_states
from .float16 import sum_dtype


if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration


def rope_positions(input_ids: Tensor, valid: Tensor, image_token_id: int, cells: Sequence[tuple[int, int]]) -> Tensor:
    """Positions of the multimodal rotary embedding.

    Text counts up on all three axes from the first token that is not padding. In an image block that starts at s, time
    stays at s while row and column run from s; the next token is one after the largest.

    Args:
        input_ids: [b, S], queries included, on the CPU.
        valid: [b, S] boolean, False at padding, on the CPU.
        image_token_id: The token that each merge cell of an image has.
        cells: (rows, columns) in merge cells of each image block, the same for every row of the batch.

    Returns:
        [3, b, S] int64: time, row, column. Padding has 1; its value does not matter.
    """
    batch, length = input_ids.shape
    positions = torch.ones(3, batch, length, dtype=torch.long)
    for row in range(batch):
        first = int(valid[row].long().argmax())
        ids = input_ids[row].tolist()
        position, index, image = 0, first, 0
        while index < length:
            if ids[index] != image_token_id:
                positions[:, row, index] = position
                index, position = index + 1, position + 1
                continue
            rows, columns = cells[image]
            end = index + rows * columns
            positions[0, row, index:end] = position
            positions[1, row, index:end] = position + torch.arange(rows).repeat_interleave(columns)
            positions[2, row, index:end] = position + torch.arange(columns).repeat(rows)
            index, position, image = end, position + max(rows, columns), image + 1
    return positions


def attention_mask(valid: Tensor, implementation: str, dtype: torch.dtype) -> Tensor | None:
    """The causal mask with padding, in the form that an attention implementation of transformers takes.

    A padded row attends to itself, so that no row is fully masked: back ends compute different things for such rows
    (zero, a mean over everything, NaN). `stacked_hidden_states` sets the result of those rows to zero.

    Args:
        valid: [b, S] boolean.
        implementation: ``sdpa`` (boolean [b, 1, S, S], True = attend), ``eager`` (the same, additive) or a
            flash attention (the [b, S] mask itself).
        dtype: Of the additive mask.

    Returns:
        The mask. No second tensor of [S, S] is allocated to compute it, except for ``eager``.
    """
    if "flash" in implementation:
        return valid.long()
    index = torch.arange(valid.shape[1], device=valid.device)  # [S]
    # The last row that may attend to a column: every later row, or for padding only its own.
    last = index + valid * len(index)  # [b, S]
    allowed = (index[:, None] <= last[:, None, None, :]).tril_()  # [b, 1, S, S]
    if implementation == "eager":
        additive = torch.zeros(allowed.shape, dtype=dtype, device=valid.device)
        return additive.masked_fill_(allowed.logical_not_(), torch.finfo(dtype).min)
    return allowed


def stacked_hidden_states(
    vlm: Qwen2_5_VLForConditionalGeneration,
    input_ids: Tensor,
    valid: Tensor,
    meta_queries: Tensor,
    image_features: Tensor | None = None,
    cells: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Run the decoder over prompt and meta queries and stack the hidden states that the connector takes.

    Layers above the deepest of these states, and the final norm, never run. Padded rows behave as in the original:
    their attention output is zero, whatever the attention implementation computes for them, and the connector later
    sees them.

    Args:
        vlm: The stock model.
        input_ids: [b, L], left-padded, on the CPU.
        valid: [b, L] boolean, False at padding, on the CPU.
        meta_queries: [queries, hidden], on the device and in the dtype of the computation.
        image_features: [b or 1, tokens of all references, hidden]: what replaces the placeholders; the same for all
            rows, or different for each.
        cells: (rows, columns) of each reference in merge cells.

    Returns:
        [b, L + queries, states x hidden] in `float16.sum_dtype`.
    """
    decoder = vlm.model.language_model
    device, dtype = meta_queries.device, meta_queries.dtype
    image_token_id = vlm.config.image_token_id
    batch, queries = input_ids.shape[0], len(meta_queries)

    # S = L + queries. Query slots have id 0 and count as text.
    all_ids = F.pad(input_ids, (0, queries), value=0)  # [b, S]
    all_valid = F.pad(valid, (0, queries), value=True)  # [b, S]
    positions = rope_positions(all_ids, all_valid, image_token_id, cells).to(device)  # [3, b, S]

    hidden_states = ops.look_up(decoder.embed_tokens, input_ids, device)  # [b, L, hidden]
    if image_features is not None:
        slots = (input_ids == image_token_id).nonzero(as_tuple=True)  # rows and columns, [b x tokens] each
        features = image_features.to(dtype).expand(batch, -1, -1).flatten(0, 1)  # [b x tokens, hidden]
        hidden_states = hidden_states.index_put(tuple(slot.to(device) for slot in slots), features)
    queries_of_batch = meta_queries.expand(batch, -1, -1)  # [b, queries, hidden]
    hidden_states = torch.cat([hidden_states, queries_of_batch], dim=1).to(sum_dtype(dtype))  # [b, S, hidden]

    all_valid = all_valid.to(device)
    padding = ~all_valid[:, :, None]  # [b, S, 1]
    mask = attention_mask(all_valid, decoder.config._attn_implementation, dtype)  # [b, 1, S, S] or [b, S]
    position_embeddings = decoder.rotary_emb(meta_queries, positions)  # of the first only dtype and device are read
    run_layer = _stock_layer
    if decoder.config._attn_implementation == "sdpa":
        run_layer = _plain_layer
        assert mask is not None
        mask = ops.attention_mask(mask)
        position_embeddings = _join_axes(position_embeddings, decoder.config)
    stacked = stacked_states(len(decoder.layers))
    states = {}
    for index, layer in enumerate(decoder.layers[: stacked[0]]):
        hidden_states = run_layer(layer, hidden_states, mask, position_embeddings, padding)  # [b, S, hidden]
        if index + 1 in stacked:
            states[index + 1] = hidden_states
    return torch.cat([states[index] for index in stacked], dim=-1)  # [b, S, states x hidden]


def _stock_layer(layer: Any, hidden_states: Tensor, mask: Any, rotary: Any, padding: Tensor) -> Tensor:
    """A decoder layer with an attention implementation of transformers: [b, S, hidden] to [b, S, hidden]."""
    dtype = rotary[0].dtype
    normalised = ops.norm(layer.input_layernorm, hidden_states, dtype)  # [b, S, hidden]
    attention = layer.self_attn(hidden_states=normalised, attention_mask=mask, position_embeddings=rotary)[0]
    # o_proj has no bias, so zeros after it are zeros before it.
    hidden_states = hidden_states + attention.masked_fill(padding, 0)
    return hidden_states + ops.gated_mlp(layer.mlp, ops.norm(layer.post_attention_layernorm, hidden_states, dtype))


def _plain_layer(
    layer: Any, hidden_states: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], padding: Tensor
) -> Tensor:
    """The same with PyTorch's attention and the operators that Ascend fuses."""
    attention, dtype = layer.self_attn, rotary[0].dtype
    normalised = ops.norm(layer.input_layernorm, hidden_states, dtype)  # [b, S, hidden]
    q, k, v = (
        project(normalised).unflatten(-1, (-1, attention.head_dim))  # [b, S, heads or kv heads, d]
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = ops.rotary(q, *rotary), ops.rotary(k, *rotary)
    attended = attention.o_proj(ops.attention(q, k, v, mask).flatten(2))  # [b, S, hidden]
    hidden_states = hidden_states + attended.masked_fill(padding, 0)
    return hidden_states + ops.gated_mlp(layer.mlp, ops.norm(layer.post_attention_layernorm, hidden_states, dtype))


def _join_axes(rotary: tuple[Tensor, Tensor], config: Any) -> tuple[Tensor, Tensor]:
    """Cosine and sine as [b, S, 1, head_dim], each channel from its axis: time, row or column.

    transformers 5 joins them itself ([b, S, head_dim]); 4.x leaves that to each layer ([3, b, S, head_dim]).
    """

    def join(table: Tensor) -> Tensor:
        if table.ndim == 3:
            return table.unsqueeze(2)
        sections = config.rope_scaling["mrope_section"] * 2
        pieces = table.split(sections, dim=-1)  # [3, b, S, section] each
        return torch.cat([piece[index % 3] for index, piece in enumerate(pieces)], dim=-1).unsqueeze(2)

    return join(rotary[0]), join(rotary[1])
