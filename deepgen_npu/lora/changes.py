"""What a LoRA and its kin do to a weight.

    LoRA    W + s * scale * up @ down                     [n, r] @ [r, m]
    LoHa    W + s * scale * (a1 @ b1) * (a2 @ b2)         elementwise product of two of them
    LoKr    W + s * scale * kron(w1, w2)                  either may be a product of rank r itself
    full    W + s * diff, or W + s * (new - W)
    DoRA    any of the first three, and then each row (or column) is scaled to a length of its own

with the strength s and the scale alpha / r, which is 1 without an alpha. Definitions: LyCORIS (KohakuBlueleaf/LyCORIS,
lycoris/modules) and PEFT (huggingface/peft, tuners/lora), which agree where s is 1. For other s, DoRA goes that part
of the way, as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.reading import read_tensor
from ..checkpoint.safetensors_header import StoredTensor
from ..checks import Named, must
from ..errors import CheckpointError, LoraError
from . import shapes
from .file import LayerChange, LoraFile
from .keys import BIASES, NEW_BIAS, NEW_WEIGHT, WEIGHTS, kind_of
from .names import Layer


Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What a file says of one layer.

    Attributes:
        layer: Which.
        tensors: By what they are: ``up``, ``down``, ``hada_w1_a`` and so on, on the host.
        scale: alpha / r.
    """

    layer: Layer
    tensors: Tensors = field(repr=False)
    scale: float = 1.0

    @property
    def changes_weight(self) -> bool:
        """Whether there is anything for the layer's weight."""
        return kind_of(self.tensors) is not None or bool(self.tensors.keys() & WEIGHTS)

    @property
    def changes_bias(self) -> bool:
        """Whether there is anything for the layer's bias."""
        return bool(self.tensors.keys() & BIASES)

    def weight(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight; the given one stays as it is.

        Args:
            weight: Of the layer as the file has it, [n, ...] in float32.
            strength: 1 is as trained, 0 changes nothing.
        """
        tensors = {name: tensor.to(weight.device, torch.float32) for name, tensor in self.tensors.items()}
        if (kind := kind_of(tensors)) is not None:
            # In place, since the largest layer has 85 MB in float32.
            delta = _KINDS[kind](tensors).reshape(weight.shape)
            if (lengths := tensors.get("dora_scale")) is None:
                weight = delta.mul_(strength * self.scale).add_(weight)
            else:
                merged = _with_lengths(delta.mul_(self.scale).add_(weight), lengths)
                weight = merged.sub_(weight).mul_(strength).add_(weight) if strength != 1 else merged
        for part in sorted(tensors.keys() & WEIGHTS):
            given = tensors[part].reshape(weight.shape)
            if part == NEW_WEIGHT:
                weight = weight.add(given - weight, alpha=strength) if strength != 1 else given
            else:
                weight = weight.add(given, alpha=strength)
        return weight

    def bias(self, bias: Tensor, strength: float) -> Tensor:
        """The changed bias, [n] in float32; the given one stays as it is."""
        for part in sorted(BIASES & self.tensors.keys()):
            given = self.tensors[part].to(bias.device, torch.float32).reshape(bias.shape)
            if part == NEW_BIAS:
                bias = bias.add(given - bias, alpha=strength) if strength != 1 else given
            else:
                bias = bias.add(given, alpha=strength * (self.scale if part == "up_bias" else 1.0))
        return bias


def read_changes(file: LoraFile) -> tuple[Change, ...]:
    """The changes of a checked file, with its tensors in memory.

    Raises:
        LoraError: When it cannot be read any more, or contains NaN or infinite numbers.
    """
    return tuple(_read_change(file, change) for change in file.changes)


def _read_change(file: LoraFile, change: LayerChange) -> Change:
    def read(part: str, stored: StoredTensor) -> Tensor:
        try:
            tensor = read_tensor(stored)
        except CheckpointError as error:
            raise LoraError(str(error)) from None
        # Bytes and integers have no such test.
        tensor = tensor if tensor.is_floating_point() and tensor.dtype.itemsize > 1 else tensor.float()
        if not tensor.isfinite().all():
            what = f"{part} of {change.name}"
            raise LoraError(f"{file.path}: {must(what, 'contain finite numbers', Named('NaN or infinite ones'))}")
        return tensor

    scale = change.scale
    if change.alpha is not None:
        rank = shapes.rank({part: stored.shape for part, stored in change.tensors.items()})
        alpha = float(read("alpha", change.alpha).reshape(()))
        scale = 1.0 if rank is None else alpha / rank
    return Change(change.layer, {part: read(part, stored) for part, stored in change.tensors.items()}, scale)


def _flat(tensor: Tensor) -> Tensor:
    """[n, ...] to [n, rest]."""
    return tensor.reshape(len(tensor), -1)


def _tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """A convolution from its core [r, s, kh, kw] and the factors of both sides, [r, n] and [s, m]: [n, m, kh, kw]."""
    return torch.einsum("rshw,rn,sm->nmhw", core, out, into)


def _lora(tensors: Tensors) -> Tensor:
    up, down = _flat(tensors["up"]), _flat(tensors["down"])
    core = tensors.get("mid")
    return up @ down if core is None else _tucker(core, up.T, down)


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    return a @ b if core is None else _tucker(core, a, b)


def _loha(tensors: Tensors) -> Tensor:
    first, second = (
        _product(tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"], tensors.get(f"hada_t{number}"))
        for number in (1, 2)
    )
    return first * second


def _lokr(tensors: Tensors) -> Tensor:
    first, second = (
        tensors[f"lokr_w{number}"]
        if f"lokr_w{number}" in tensors
        else _product(tensors[f"lokr_w{number}_a"], tensors[f"lokr_w{number}_b"], core)
        for number, core in ((1, None), (2, tensors.get("lokr_t2")))
    )
    return torch.kron(first.reshape(*first.shape, *(1 for _ in range(second.ndim - 2))), second.contiguous())


_KINDS: dict[str, Callable[[Tensors], Tensor]] = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr}


def _with_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """A weight [n, m, ...] whose rows, or whose columns, are scaled to the given lengths (DoRA, arXiv 2402.09353)."""
    # Of a square weight, the shape of the lengths shows what they are: [n], [n, 1] or [1, m].
    count, (rows, *columns) = lengths.numel(), weight.shape
    along = 1 if columns[:1] == [count] and (count != rows or lengths.shape[0] == 1) else 0
    others = [axis for axis in range(weight.ndim) if axis != along]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    shape = [-1 if axis == along else 1 for axis in range(weight.ndim)]
    return weight * (lengths.reshape(shape) / norms.clamp_min(torch.finfo(weight.dtype).tiny))
