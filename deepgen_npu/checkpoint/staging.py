"""Bytes from files to a device: while it copies one piece from main memory, the next is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..devices import on_device, pinned_memory


class Staging:
    """Two pinned buffers that a device copies from by itself, one after the other.

    A buffer is free again when the device's event says that its copy has ended. On leaving the block all have.

    Args:
        device: An accelerator.
        buffers: Two of the same size, from `pinned_memory`.
    """

    def __init__(self, device: torch.device, buffers: tuple[Tensor, Tensor]):
        self._device, self._buffers = device, buffers
        backend: Any = getattr(torch, device.type)
        with on_device(device):
            self._copied = tuple(backend.Event() for _ in buffers)
        self._in_flight = [False for _ in buffers]
        self._turn = 0
        self._landed: Tensor | None = None

    @classmethod
    def to(cls, device: torch.device, nbytes: int) -> Staging | None:
        """Buffers of ``nbytes`` each; None where the device has no pinned memory, or there is no more of it.

        Where another dtype is wanted the device has a buffer of that size, too. PyTorch keeps the pinned memory for
        the next call.
        """
        buffers = pinned_memory(device, nbytes), pinned_memory(device, nbytes)
        return None if buffers[0] is None or buffers[1] is None else cls(device, (buffers[0], buffers[1]))

    def free(self, dtype: torch.dtype) -> Tensor:
        """The buffer whose turn it is [n], to be filled and sent. Waits until the device has read what was in it."""
        self._wait(self._turn)
        return self._buffers[self._turn].view(dtype)

    def send(self, piece: Tensor, target: Tensor) -> None:
        """Let the device copy what was read, and cast it there. It is not waited for.

        Args:
            piece: The first elements [n] of the buffer that `free` returned.
            target: [n], on the device.
        """
        cast = piece.dtype != target.dtype
        if cast and self._landed is None:
            self._landed = torch.empty_like(self._buffers[0], device=self._device)
        landed = self._landed[: piece.nbytes].view(piece.dtype) if cast and self._landed is not None else target
        with on_device(self._device):
            landed.copy_(piece, non_blocking=True)
            self._copied[self._turn].record()
            self._in_flight[self._turn] = True
            if cast:
                target.copy_(landed)  # in the order of the device's stream: after that copy, before the next
        self._turn = (self._turn + 1) % len(self._buffers)

    def _wait(self, turn: int) -> None:
        if self._in_flight[turn]:
            self._copied[turn].synchronize()
            self._in_flight[turn] = False

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        for turn in range(len(self._buffers)):
            self._wait(turn)
