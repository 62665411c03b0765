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


class StayInPlace:
    """Parts run where they are."""

    def __init__(self, parts: Mapping[str, Module]):
        self._parts = parts

    def activate(self, part: str) -> torch.device:
        device = next(self._parts[part].parameters()).device
        prepare_thread(device)
        return device


class ModelOffload:
    """Parts wait on the CPU; one at a time is on the device.

    A part comes to the device when its stage begins and leaves it when another part's stage begins, so at
    most the largest part and its activations are there.
    """

    def __init__(self, parts: Mapping[str, Module], device: torch.device):
        self._parts = parts
        self.device = device

    def activate(self, part: str) -> torch.device:
        prepare_thread(self.device)
        for name, module in self._parts.items():
            if name != part:
                module.to("cpu")
        self._parts[part].to(self.device)
        return self.device
