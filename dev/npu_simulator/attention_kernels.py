"""Reference kernels of the fused attention operators; see `kernels`.

Masks are those of CANN: True is left out, the opposite of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import FLOATS, check_floats, refuse


UNBOUNDED = 2147483647
_TRIANGLE = (2048, 2048)  # the one mask that the causal modes take, whatever the sequences
_MAX_HEAD_DIM = 512


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNBOUNDED,
    next_tockens: int = UNBOUNDED,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """(attention, maximum and sum of the softmax [B, N, S, 8], nothing, seed, offset, length of the dropout mask)."""
    name = "npu_fusion_attention"
    refuse(
        name,
        pse=pse,
        padding_mask=padding_mask,
        prefix=prefix,
        actual_seq_qlen=actual_seq_qlen,
        actual_seq_kvlen=actual_seq_kvlen,
        sink=sink,
        dropout_mask=dropout_mask,
        dropout=keep_prob if keep_prob != 1 else None,
    )
    check_floats(name, query=query, key=key, value=value)
    heads = _split_heads(name, (query, key, value), head_num, None, input_layout)
    if sparse_mode in (2, 3):
        mask = _triangle(name, atten_mask, heads[0].shape[2], heads[1].shape[2], sparse_mode)
    elif sparse_mode in (0, 1):
        if pre_tockens < heads[0].shape[2] or next_tockens < heads[1].shape[2]:
            raise RuntimeError(f"{name}: a band of {pre_tockens} and {next_tockens} tokens is not implemented")
        mask = _checked_mask(name, atten_mask, heads[0], heads[1])
    else:
        raise RuntimeError(f"{name}: sparse_mode {sparse_mode} is not implemented")
    attended, maximum, total = _attend(*heads, scale, mask)
    return _join_heads(attended, input_layout), maximum, total, query.new_empty(0), seed, offset, 0


def npu_fusion_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNBOUNDED,
    next_tockens: int = UNBOUNDED,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `npu_fusion_attention`, with seed and offset as tensors: what PyTorch's attention calls on an NPU."""
    refuse("npu_fusion_attention_v3", actual_seq_qlen=actual_seq_qlen, actual_seq_kvlen=actual_seq_kvlen)
    outputs = npu_fusion_attention(
        query,
        key,
        value,
        head_num,
        input_layout,
        pse=pse,
        padding_mask=padding_mask,
        atten_mask=atten_mask,
        scale=scale,
        keep_prob=keep_prob,
        pre_tockens=pre_tockens,
        next_tockens=next_tockens,
        prefix=prefix,
        sparse_mode=sparse_mode,
        sink=sink,
    )
    nothing = torch.zeros(1, dtype=torch.int64, device=query.device)
    return (*outputs[:4], nothing, nothing.clone())


def npu_prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = UNBOUNDED,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    **others: object,
) -> Tensor:
    """Attention for inference, in half precision only."""
    name = "npu_prompt_flash_attention"
    refuse(name, sparse_mode=sparse_mode or None, **others)
    check_floats(name, FLOATS[:2], query=query, key=key, value=value)
    # The output alone is BSND in the layout BNSD_BSND.
    layout = "BNSD" if input_layout == "BNSD_BSND" else input_layout
    heads = _split_heads(name, (query, key, value), num_heads, num_key_value_heads or num_heads, layout)
    if pre_tokens < heads[0].shape[2] or next_tokens < heads[1].shape[2]:
        raise RuntimeError(f"{name}: next_tokens is {next_tokens}; its default is a causal band, pass {UNBOUNDED}")
    attended, _, _ = _attend(*heads, scale_value, _checked_mask(name, atten_mask, heads[0], heads[1]))
    return _join_heads(attended, input_layout.rpartition("_")[2])


def _split_heads(
    name: str, tensors: tuple[Tensor, Tensor, Tensor], heads: int, kv_heads: int | None, layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [B, N, S, D], keys and values repeated for all heads of the query."""
    if layout not in ("BNSD", "BSND", "BSH", "SBH"):
        raise RuntimeError(f"{name}: input_layout {layout!r} is not supported")
    if any(tensor.dim() != len(layout) for tensor in tensors):
        raise RuntimeError(f"{name}: the layout {layout} needs {len(layout)} dimensions")
    if heads < 1 or (layout in ("BSH", "SBH") and tensors[0].shape[-1] % heads):
        raise RuntimeError(f"{name}: {heads} heads do not fit the query {tuple(tensors[0].shape)}")
    if layout == "SBH":
        tensors = tuple(tensor.transpose(0, 1) for tensor in tensors)
    if layout in ("BSH", "SBH"):
        d = tensors[0].shape[-1] // heads
        if any(tensor.shape[-1] % d for tensor in tensors):
            raise RuntimeError(f"{name}: keys or values do not split into heads of {d}")
        tensors = tuple(tensor.unflatten(-1, (-1, d)) for tensor in tensors)
    if layout != "BNSD":
        tensors = tuple(tensor.transpose(1, 2) for tensor in tensors)
    q, k, v = tensors
    if q.shape[1] != heads or kv_heads not in (None, k.shape[1]):
        raise RuntimeError(f"{name}: {heads} heads ({kv_heads}) for q {tuple(q.shape)}, k {tuple(k.shape)}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise RuntimeError(f"{name}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit")
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError(f"{name}: q, k and v are {q.dtype}, {k.dtype}, {v.dtype}")
    if heads % k.shape[1]:
        raise RuntimeError(f"{name}: {heads} heads of the query must be a multiple of {k.shape[1]} of the keys")
    if q.shape[3] > _MAX_HEAD_DIM:
        raise RuntimeError(f"{name}: the head dimension {q.shape[3]} is above {_MAX_HEAD_DIM}")
    groups = heads // k.shape[1]
    return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)


def _join_heads(attended: Tensor, layout: str) -> Tensor:
    if layout == "BNSD":
        return attended
    attended = attended.transpose(1, 2)
    if layout != "BSND":
        attended = attended.flatten(2)
    return (attended.transpose(0, 1) if layout == "SBH" else attended).contiguous()


def _checked_mask(name: str, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """A mask of one of the shapes [B, N, S, S], [B, 1, S, S], [1, 1, S, S], [S, S]: nothing broadcasts over S."""
    if mask is None:
        return None
    if mask.dtype not in (torch.bool, torch.uint8):
        raise RuntimeError(f"{name}: atten_mask must be bool or uint8, got {mask.dtype}")
    batch, heads, rows = q.shape[:3]
    sizes = (rows, k.shape[2])
    if tuple(mask.shape) not in ((batch, heads, *sizes), (batch, 1, *sizes), (1, 1, *sizes), sizes):
        raise RuntimeError(f"{name}: atten_mask {tuple(mask.shape)} for q {tuple(q.shape)}, k {tuple(k.shape)}")
    return mask.bool()


def _triangle(name: str, mask: Tensor | None, rows: int, columns: int, sparse_mode: int) -> Tensor:
    """Causal from the top left (sparse_mode 2) or from the bottom right (3)."""
    if mask is None or tuple(mask.shape[-2:]) != _TRIANGLE:
        raise RuntimeError(f"{name}: sparse_mode {sparse_mode} needs an atten_mask of {_TRIANGLE}")
    diagonal = 1 if sparse_mode == 2 else 1 + columns - rows
    return torch.ones(rows, columns, dtype=torch.bool, device=mask.device).triu(diagonal)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    scores = q.float() @ k.float().transpose(-1, -2) * scale
    if mask is not None:
        # Finite, so that a row with nothing left is a mean of everything and not NaN.
        scores = scores.masked_fill(mask, -1e30)
    maximum = scores.amax(-1, keepdim=True)
    weights = (scores - maximum).exp()
    total = weights.sum(-1, keepdim=True)
    attended = ((weights / total) @ v.float()).to(q.dtype)
    return attended, maximum.repeat(1, 1, 1, 8), total.repeat(1, 1, 1, 8)
