"""Where the parts of a pipeline are while each stage runs.

The pipeline asks its placement for the parts of a stage just before it uses them. A host with a memory
manager of its own, such as ComfyUI, brings its own placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn import Module

from .devices import prepare_thread


class Placement(Protocol):
    def activate(self, part: str) -> torch.device:
        """Make ``vlm``, ``connector``, ``transformer`` or ``vae`` ready to run and say where it runs."""
        ...

    def release(self) -> None:
        """A run has ended, well or not: nothing needs to stay ready."""
        ...


class StayInPlace:
    """Parts run where they are."""

    def __init__(self, parts: Mapping[str, Module]):
        self._parts = parts

    def activate(self, part: str) -> torch.device:
        device = next(self._parts[part].parameters()).device
        prepare_thread(device)
        return device

    def release(self) -> None:
        pass


class ModelOffload:
    """Parts wait on the CPU; one at a time is on the device.

    A part comes to the device when its stage begins and leaves it when another part's stage begins or the run
    ends, so at most the largest part and its activations are there.
    """

    def __init__(self, parts: Mapping[str, Module], device: torch.device):
        self._parts = parts
        self.device = device

    def activate(self, part: str) -> torch.device:
        prepare_thread(self.device)
        self.release(keep=part)
        self._parts[part].to(self.device)
        return self.device

    def release(self, keep: str | None = None) -> None:
        for name, module in self._parts.items():
            if name != keep:
                module.to("cpu")
