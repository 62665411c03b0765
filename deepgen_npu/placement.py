"""Where the parts of a pipeline are while each stage runs.

The pipeline asks its placement for the parts of a stage just before it uses them. A host with a memory
manager of its own, such as ComfyUI, brings its own placement.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn import Module

from .devices import empty_cache, prepare_thread


logger = logging.getLogger(__name__)


class Placement(Protocol):
    how_to_tile: str
    """Told to a user whose device has no room to decode a picture."""

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Make ``vlm``, ``connector``, ``transformer`` or ``vae`` ready to run and say where it runs.

        Args:
            nbytes: An estimate of what the part will need there beside its weights.
        """
        ...

    def make_room(self, part: str) -> None:
        """The device of a part has no memory left: free what is not needed there. `activate` follows."""
        ...

    def release(self) -> None:
        """A run has ended, well or not: nothing needs to stay ready."""
        ...


class StayInPlace:
    """Parts run where they are. When a device's memory runs out, its parts begin to take turns."""

    how_to_tile = "enable_vae_tiling(), --vae_tiling"

    def __init__(self, parts: Mapping[str, Module]):
        self._parts = parts
        self._turns: dict[torch.device, ModelOffload] = {}

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        for turns in self._turns.values():
            if part in turns.parts:
                return turns.activate(part)
        device = device_of(self._parts[part])
        prepare_thread(device)
        return device

    def make_room(self, part: str) -> None:
        device = device_of(self._parts[part])
        if device.type != "cpu" and device not in self._turns:
            there = {name: module for name, module in self._parts.items() if device_of(module) == device}
            self._turns[device] = ModelOffload(there, device)
            logger.warning(
                "The memory of %s is used up: from here on %s take turns on it and wait on the CPU. "
                "enable_model_cpu_offload() (--offload) does that from the start.",
                device,
                ", ".join(there),
            )
        for turns in self._turns.values():
            turns.make_room(part)

    def release(self) -> None:
        for turns in self._turns.values():
            turns.release()


class ModelOffload:
    """Parts wait on the CPU; one at a time is on the device.

    A part comes to the device when its stage begins and leaves it when another part's stage begins or the run
    ends, so at most the largest part and its activations are there.
    """

    how_to_tile = StayInPlace.how_to_tile

    def __init__(self, parts: Mapping[str, Module], device: torch.device):
        self.parts = parts
        self.device = device

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        prepare_thread(self.device)
        self.release(keep=part)
        self.parts[part].to(self.device)
        return self.device

    def make_room(self, part: str) -> None:
        self.release()
        empty_cache(self.device)

    def release(self, keep: str | None = None) -> None:
        for name, module in self.parts.items():
            if name != keep:
                module.to("cpu")


def device_of(module: Module) -> torch.device:
    return next(module.parameters()).device
