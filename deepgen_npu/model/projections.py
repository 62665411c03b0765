"""Several linear layers of one input, such as queries, keys and values, as one matrix product.

Their weights stay parameters of their own, under their own names. `lay_together` only puts them one after another in
memory, where the same bytes are also the rows of one matrix; `project` sees it by the addresses. Whatever moves a
weight or computes with another (offload, a patch, a LoRA in bypass mode) ends that by itself: then, and on the CPU,
each layer runs on its own.

The result is the same but for rounding. What it saves are launches, for which an NPU waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter


def project(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """What each layer makes of an input.

    Args:
        layers: Linear ones.
        x: [..., n].

    Returns:
        [..., m] of each layer; slices of one tensor where the weights lie together.
    """
    joined = _joined(layers, x)
    if joined is None:
        return [layer(x) for layer in layers]
    weight, bias = joined
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], -1)


def _joined(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of the layers as one; None where each has to run on its own."""
    if x.device.type == "cpu" or not all(map(_is_plain, layers)):
        return None
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    first = weights[0]
    if first.device != x.device or first.dtype != x.dtype:
        return None
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (*weights, *biases)):
        return None  # the rows of one matrix would have no gradients
    weight = _together(weights)
    if weight is None or all(bias is None for bias in biases):
        return None if weight is None else (weight, None)
    bias = None if any(bias is None for bias in biases) else _together(biases)
    return None if bias is None else (weight, bias)


@torch.no_grad()
def lay_together(transformer: Any) -> None:
    """Put the weights of each attention's queries, keys and values one after another.

    One attention at a time is copied: that much more memory is needed on the way, and none afterwards. Nothing is done
    on the CPU, where nobody waits for launches, nor to layers that are quantised, patched or elsewhere.

    Args:
        transformer: The DiT, or a module with its blocks.
    """
    for layers in _groups(transformer):
        weights = [getattr(layer, "weight", None) for layer in layers]
        places = {(weight.device, weight.dtype) for weight in weights if weight is not None}
        if len(places) != 1 or next(iter(places))[0].type in ("cpu", "meta") or not all(map(_is_plain, layers)):
            continue
        for name in ("weight", "bias"):
            tensors = [getattr(layer, name) for layer in layers]
            if any(tensor is None for tensor in tensors) or _together(tensors) is not None:
                continue
            # Of the kind that they were: what inference mode has made cannot be changed outside of it.
            with torch.inference_mode(tensors[0].is_inference()):
                pieces = torch.cat([tensor.data for tensor in tensors]).split([len(tensor) for tensor in tensors])
                for layer, tensor, piece in zip(layers, tensors, pieces, strict=True):
                    setattr(layer, name, Parameter(piece, requires_grad=tensor.requires_grad))


def places_together(transformer: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Memory for what `lay_together` puts together, so that weights are read to where they stay.

    Args:
        transformer: The DiT without memory.
        dtype: Of its weights.
        device: Where they will be; on the CPU nothing is put together.

    Returns:
        Parts of common allocations, by the names of the parameters.
    """
    found: dict[str, Tensor] = {}
    names = {module: name for name, module in transformer.named_modules()}
    for layers in _groups(transformer) if device.type != "cpu" else ():
        if not all(map(_is_plain, layers)):
            continue
        for name in ("weight", "bias"):
            tensors = [getattr(layer, name) for layer in layers]
            if any(tensor is None for tensor in tensors):
                continue
            sizes = [len(tensor) for tensor in tensors]
            whole = torch.empty(sum(sizes), *tensors[0].shape[1:], dtype=dtype, device=device)
            for layer, piece in zip(layers, whole.split(sizes), strict=True):
                found[f"{names[layer]}.{name}"] = piece
    return found


def _groups(transformer: Any) -> Iterator[list[Any]]:
    """Layers that have one input. Those of which only some are needed, keys and values, are neighbours."""
    for block in transformer.transformer_blocks:
        first, second = block.attn, getattr(block, "attn2", None)
        yield [first.to_q, first.to_k, first.to_v]
        yield [first.add_q_proj, first.add_k_proj, first.add_v_proj]
        if second is not None:
            yield [second.to_q, second.to_k, second.to_v]


def _is_plain(layer: Any) -> bool:
    """Whether a layer multiplies by its weight where that is, and does nothing else.

    A layer of a host that patches or moves weights says so by a method ``is_plain``.
    """
    of_host = getattr(layer, "is_plain", None)
    plain = type(layer) is Linear if of_host is None else of_host()
    return plain and "forward" not in vars(layer) and not layer._forward_hooks and not layer._forward_pre_hooks


def _together(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors [n, ...] as one, [sum of n, ...]; None if they do not lie one after another."""
    first = tensors[0]
    address, offset = first.data_ptr(), first.storage_offset()
    for tensor in tensors:
        # Equal offsets besides equal addresses: parts of one allocation, not neighbours by chance.
        if tensor.data_ptr() != address or tensor.storage_offset() != offset or not tensor.is_contiguous():
            return None
        address, offset = address + tensor.nbytes, offset + tensor.numel()
    rows = sum(len(tensor) for tensor in tensors)
    return first.data.as_strided((rows, *first.shape[1:]), first.stride())
