"""The devices that a user may choose for a part of the model, under the names that ComfyUI's own nodes have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

DEFAULT = "default"
"""Where ComfyUI runs the model."""

MOST_CARDS = 16
"""Cards that can be chosen: a server has eight cards of two chips at most."""

DEVICES = [DEFAULT, "cpu", *(f"gpu:{index}" for index in range(MOST_CARDS))]
"""Choices of an input: the same on every machine, so that workflows can be passed on. gpu is any kind of card."""


def find_device(name: str, what: str) -> torch.device:
    """The device of a choice. Where this machine has no such card it is the default, which the log says.

    Args:
        name: One of `DEVICES`.
        what: What is to run there, for the log.
    """
    import comfy.model_management as mm
    import torch

    default = mm.get_torch_device()
    if name == "cpu":
        return torch.device("cpu")
    if name == DEFAULT:
        return default
    index = int(name.removeprefix("gpu:"))
    count = getattr(torch, default.type).device_count() if default.type in ("cuda", "npu") else 0
    if index < count:
        return torch.device(default.type, index)
    logger.warning("DeepGen: this machine has no %s, so %s runs on %s.", name, what, default)
    return default
