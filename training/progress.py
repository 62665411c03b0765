"""What the stages share: the schedule of the learning rate, one optimizer step, and the log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def cosine(part: float, floor: float = 0.02) -> float:
    """From 1 at the start of a stage to ``floor`` at its end."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One step of an optimizer, with the gradient norm clipped to 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Log:
    """One JSON object per line, on the screen and in a file.

    Args:
        path: The file; None for the screen alone.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def write(self, **values: Any) -> None:
        """Add a line."""
        values = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        line = json.dumps({"at": time.strftime("%H:%M:%S"), **values})
        print(line, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
