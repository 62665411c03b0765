"""What the stages share: a learning rate that falls, and a log that can be read while it grows."""

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


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One step of one optimizer, with gradients of at most the norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Log:
    """One JSON object a line, on the screen and in a file."""

    def __init__(self, path: Path | None):
        self.path = path

    def write(self, **values: Any) -> None:
        values = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        line = json.dumps({"at": time.strftime("%H:%M:%S"), **values})
        print(line, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
