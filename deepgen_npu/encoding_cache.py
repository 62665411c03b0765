"""A cache of encoded prompts and references, and the key of a reference in it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


class EncodingCache:
    """An LRU cache of tensors on the CPU, limited by their bytes. Threads may share it.

    Args:
        max_bytes: With 0 nothing is stored.
    """

    def __init__(self, max_bytes: int = 0):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors that `put` stored for this key; None if it has none, or no longer has them."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Store copies on the CPU, so that no device memory is held. What alone exceeds the limit is not stored."""
        size = sum(tensor.nbytes for tensor in tensors)
        if size > self.max_bytes:
            return
        copies = tuple(tensor.to("cpu", copy=True) for tensor in tensors)
        with self._lock:
            self.nbytes -= _nbytes(self._kept.pop(key, ()))
            self._kept[key] = copies
            self.nbytes += size
            while self.nbytes > self.max_bytes:
                self.nbytes -= _nbytes(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0


def _nbytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class ReferenceImage:
    """A reference image at the output's size.

    Attributes:
        pixels: [3, H, W] in [-1, 1], on the CPU.
        name: Identifies its content, for the cache (see `digest`).
    """

    pixels: Tensor
    name: Hashable

    @classmethod
    def of(cls, pixels: Tensor) -> ReferenceImage:
        """The reference with these pixels, [3, H, W] in [-1, 1] on the CPU."""
        return cls(pixels, digest(pixels))


def digest(pixels: Tensor) -> tuple[tuple[int, ...], str]:
    """The identity of an image on the CPU: its shape and a hash of its values."""
    values = pixels.contiguous().view(torch.uint8).numpy()
    return tuple(pixels.shape), hashlib.sha256(values).hexdigest()
