"""The state of a training stage, so that a stopped run resumes where it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from deepgen_npu.files import replacing


SAVE_SECONDS = 120


class Stateful(Protocol):
    """A model or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Saved:
    """What a stage trains, its progress, and the file that stores both.

    Args:
        path: The file. If it exists, its state is restored.
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
        """Restore the state that was saved before the last one, if it exists."""
        if self._earlier.exists():
            self._restore(self._earlier)

    def save(self) -> None:
        """Save the state. The one before it is kept as well."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with replacing(self.path) as unfinished:
            torch.save({**state, "step": self.step, "seconds": self.seconds}, unfinished)
            if self.path.exists():
                self.path.replace(self._earlier)

    def until(self, seconds: float) -> Iterator[float]:
        """Before each step, the part of the time that is over, in [0, 1). Saves from time to time and at the end."""
        last = saved = time.monotonic()
        while self.seconds < seconds:
            yield self.seconds / seconds
            now = time.monotonic()
            self.seconds, self.step, last = self.seconds + now - last, self.step + 1, now
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()
