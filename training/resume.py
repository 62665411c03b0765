"""The state of a training stage, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch


SAVE_SECONDS = 120


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Saved:
    """What a stage trains, how far it is, and the file that keeps both.

    Args:
        path: The file. If it is there, its state is taken up.
        parts: Models and optimizers by name.

    Attributes:
        step: Number of steps done.
        seconds: Time trained, over all runs.
    """

    def __init__(self, path: Path, **parts: Stateful):
        self.path, self.parts = path, parts
        self.step, self.seconds = 0, 0.0
        if path.exists():
            self._restore(path)

    @property
    def _earlier(self) -> Path:
        return self.path.with_suffix(".earlier")

    def _restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]

    def go_back(self) -> None:
        """Take up the state that was saved before the last one, if it is there."""
        if self._earlier.exists():
            self._restore(self._earlier)

    def save(self) -> None:
        """Save the state; the one before it is kept, too."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        temporary = self.path.with_suffix(".partial")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, temporary)
        if self.path.exists():
            os.replace(self.path, self._earlier)
        os.replace(temporary, self.path)

    def until(self, seconds: float) -> Iterator[float]:
        """Before each step the part of the time that is over, in [0, 1); saves now and then and at the end."""
        last = saved = time.monotonic()
        while self.seconds < seconds:
            yield self.seconds / seconds
            now = time.monotonic()
            self.seconds, self.step, last = self.seconds + now - last, self.step + 1, now
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()
