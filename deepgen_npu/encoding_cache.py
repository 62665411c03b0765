"""What was encoded before is not encoded again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


class EncodingCache:
    """Results of encoding, on the CPU, up to so many bytes; what was not asked for longest goes first.

    Args:
        max_bytes: With 0 nothing is kept.
    """

    def __init__(self, max_bytes: int = 0):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What `put` was given under this key, if it is still there."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Keep copies on the CPU; no device memory is held."""
        size = sum(tensor.nbytes for tensor in tensors)
        if size > self.max_bytes:
            return
        self.nbytes -= _nbytes(self._kept.pop(key, ()))
        self._kept[key] = tuple(tensor.to("cpu", copy=True) for tensor in tensors)
        self.nbytes += size
        while self.nbytes > self.max_bytes:
            self.nbytes -= _nbytes(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0


def _nbytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class ReferenceImage:
    """A reference picture at the output's size.

    Attributes:
        pixels: [3, H, W] in [-1, 1], on the CPU.
        name: What tells it from other pictures.
    """

    pixels: Tensor
    name: Hashable

    @classmethod
    def of(cls, pixels: Tensor) -> ReferenceImage:
        return cls(pixels, digest(pixels))


def digest(pixels: Tensor) -> tuple[tuple[int, ...], str]:
    """What tells a picture from others: its shape and a hash of its values, which are on the CPU."""
    values = pixels.contiguous().view(torch.uint8).numpy()
    return tuple(pixels.shape), hashlib.sha256(values).hexdigest()
