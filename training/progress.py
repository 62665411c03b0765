"""What the stages share: a learning rate that falls, and a log that can be read while it grows."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any


def cosine(part: float, floor: float = 0.02) -> float:
    """From 1 at the start of a stage to ``floor`` at its end."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


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
