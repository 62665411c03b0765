"""Copies from main memory that the simulated device makes by itself, while the host goes on.

They are those from pinned memory that are asked not to block. The device may read that memory at any time until the
host waits for an event recorded after the copy, or for the device. So until then nobody may write to it: whether
somebody did is looked at when such a wait comes, and before the next copy from there.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(eq=False)
class Copy:
    """One that the host has not waited for."""

    card: int
    source: torch.Tensor
    before: torch.Tensor

    def end(self) -> None:
        """The device has read its source by now.

        Raises:
            RuntimeError: When the source is not what it was.
        """
        outstanding.remove(self)
        if not torch.equal(self.source, self.before):
            raise RuntimeError("Pinned memory was written to while the device was copying from it.")


outstanding: list[Copy] = []
"""In the order in which they were asked for, which is that of the device's stream."""

_pinned: dict[int, int] = {}


def begin(source: torch.Tensor, card: int, non_blocking: bool) -> bool:
    """Copy to a card; whether the host goes on meanwhile. Otherwise it waits, also for all before."""
    if not (non_blocking and source.is_pinned()):
        wait(card)
        return False
    start, end = _bytes(source)
    for copy in list(outstanding):
        first, last = _bytes(copy.source)
        if first < end and start < last:
            copy.end()
    outstanding.append(Copy(card, source.view(-1).view(torch.uint8), source.reshape(-1).view(torch.uint8).clone()))
    return True


def of(card: int) -> list[Copy]:
    """What an event that is recorded now will wait for."""
    return [copy for copy in outstanding if copy.card == card]


def wait(card: int | None = None) -> None:
    """All copies to a card, or to all cards, have ended."""
    end([copy for copy in outstanding if card is None or copy.card == card])


def end(copies: list[Copy]) -> None:
    """These copies have ended, those that had not before."""
    for copy in copies:
        if copy in outstanding:
            copy.end()


def install(library: torch.library.Library) -> None:
    """Let ``pin_memory()`` and ``is_pinned()`` of tensors work, as with a card.

    Args:
        library: For implementations of ``aten``.
    """

    def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        pinned = tensor.clone(memory_format=torch.contiguous_format)
        storage = pinned.untyped_storage()
        _pinned[storage.data_ptr()] = storage.nbytes()
        weakref.finalize(storage, _pinned.pop, storage.data_ptr())
        return pinned

    library.impl("_pin_memory", pin, "CPU")
    library.impl("is_pinned", lambda tensor, device=None: tensor.untyped_storage().data_ptr() in _pinned, "CPU")


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
