"""Where the parts of a pipeline are while each stage runs.

The pipeline asks its placement for a part just before it uses it. A host with its own memory manager, such as ComfyUI,
brings its own placement.
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
    """What moves the parts of a pipeline."""

    how_to_tile: str
    """How to decode in tiles, for the error of a device that has too little memory to decode an image."""

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Make a part ready to run and return the device it runs on.

        Args:
            part: ``vlm``, ``connector``, ``transformer`` or ``vae``.
            nbytes: An estimate of what the part will need there on top of its weights.
        """
        ...

    def make_room(self, part: str) -> None:
        """Free what a part does not need on its device, which is out of memory. `activate` is called next."""
        ...

    def stays(self, part: str) -> bool:
        """Whether a part is where it runs also between two runs, so that its graphs can be kept."""
        ...

    def release(self) -> None:
        """Called when a run has ended or failed: no part needs to stay ready."""
        ...


class StayInPlace:
    """Parts run where they are. When a device runs out of memory, its parts are offloaded from then on."""

    how_to_tile = "enable_vae_tiling(), --vae_tiling"

    def __init__(self, parts: Mapping[str, Module]):
        self._parts = parts
        self._turns: dict[torch.device, ModelOffload] = {}

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Return the device that the part is on; move it there if that device's parts are offloaded."""
        for turns in self._turns.values():
            if part in turns.parts:
                return turns.activate(part)
        device = device_of(self._parts[part])
        prepare_thread(device)
        return device

    def make_room(self, part: str) -> None:
        """Start offloading the parts on this part's device, and move them all to the CPU."""
        device = device_of(self._parts[part])
        if device.type != "cpu" and device not in self._turns:
            there = {name: module for name, module in self._parts.items() if device_of(module) == device}
            self._turns[device] = ModelOffload(there, device)
            logger.warning(
                "%s is out of memory: from now on its parts (%s) are offloaded to the CPU and moved in one at a time. "
                "enable_model_cpu_offload() (--offload) does that from the start.",
                device,
                ", ".join(there),
            )
        for turns in self._turns.values():
            turns.make_room(part)

    def stays(self, part: str) -> bool:
        """Unless it is offloaded."""
        return not any(part in turns.parts for turns in self._turns.values())

    def release(self) -> None:
        """Move the parts that are offloaded to the CPU."""
        for turns in self._turns.values():
            turns.release()


class ModelOffload:
    """Parts are on the CPU; one at a time is on the device.

    A part is moved to the device when its stage begins, and back when another part's stage begins or the run ends, so
    at most the largest part and its activations are there.
    """

    how_to_tile = StayInPlace.how_to_tile

    def __init__(self, parts: Mapping[str, Module], device: torch.device):
        self.parts = parts
        self.device = device

    def activate(self, part: str, nbytes: int = 0) -> torch.device:
        """Move the part to the device, and all others to the CPU."""
        prepare_thread(self.device)
        self.release(keep=part)
        self.parts[part].to(self.device)
        return self.device

    def make_room(self, part: str) -> None:
        """Move all parts to the CPU, and return cached memory to the device."""
        self.release()
        empty_cache(self.device)

    def stays(self, part: str) -> bool:
        """Never: the part goes back to the CPU."""
        return False

    def release(self, keep: str | None = None) -> None:
        """Move all parts to the CPU, except ``keep``."""
        for name, module in self.parts.items():
            if name != keep:
                module.to("cpu")


def device_of(module: Module) -> torch.device:
    """The device of a module's first parameter."""
    return next(module.parameters()).device
