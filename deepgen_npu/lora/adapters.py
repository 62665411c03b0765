"""The LoRAs of a pipeline: which are loaded, under which names, how strong each is."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.tensor_shapes import transformer as shapes_of
from ..checks import must_be
from .changes import Change, read_changes
from .file import LoraFile, inspect, strength
from .merge import Merged


logger = logging.getLogger(__name__)

MOST_NAMED = 20
"""Keys that a line of the log names; the others are counted."""


@dataclass(frozen=True)
class Adapter:
    """A loaded LoRA.

    Attributes:
        changes: What it changes.
        weight: Its strength: 1 is as trained, 0 changes nothing, below 0 it does the opposite.
    """

    changes: tuple[Change, ...] = field(repr=False)
    weight: float


class Adapters:
    """The LoRAs of one DiT.

    Args:
        transformer: The DiT, into which they are merged.
    """

    def __init__(self, transformer: Any):
        self._loaded: dict[str, Adapter] = {}
        self._transformer = transformer
        self._merged = Merged(transformer)

    @property
    def weights(self) -> dict[str, float]:
        """The strength of each LoRA by its name, in the order in which they were loaded."""
        return {name: adapter.weight for name, adapter in self._loaded.items()}

    def load(
        self, path: str | os.PathLike[str], name: str | None = None, weight: float = 1.0, copies: Sequence[Any] = ()
    ) -> str:
        """Read a file and merge it. Nothing is changed if it cannot be used.

        Args:
            path: The file, or the folder that contains it.
            name: None takes that of the file.
            weight: Its strength.
            copies: Further DiTs of the same weights, on other devices.

        Returns:
            The name.

        Raises:
            LoraError: When the file cannot be used (see `file.inspect`).
            TypeError, ValueError: When there is a LoRA of that name, or for a weight that cannot be.
        """
        weight = strength("weight", weight)
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(must_be("adapter_name", "a string that is not empty, or None", name))
        if name in self._loaded:
            loaded = ", ".join(self._loaded)
            advice = f"Choose another; unload_lora_weights() takes all out. Loaded: {loaded}."
            raise ValueError(must_be("adapter_name", "a new one", name, advice=advice))
        file = inspect(path, shapes_of(self._transformer.config))
        changes = read_changes(file)
        name = name or self._free_name(Path(path).expanduser())
        report(file)
        self._set({**self._loaded, name: Adapter(changes, weight)}, copies)
        return name

    def set(self, names: str | Sequence[str], weights: float | Sequence[float] | None, copies: Sequence[Any]) -> None:
        """Set the strength of the named LoRAs, in one go; those that are not named get 0.

        Args:
            names: One, or several.
            weights: One for each name, or one for all; None is 1.
            copies: As for `load`.

        Raises:
            TypeError, ValueError: For a name that is not loaded, and for weights that cannot be.
        """
        given = [names] if isinstance(names, str) else names
        if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
            raise TypeError(must_be("adapter_names", "a name or a list of names", names))
        for name in given:
            if name not in self._loaded or list(given).count(name) > 1:
                advice = f"Loaded: {', '.join(self._loaded) or 'none'}."
                raise ValueError(must_be("adapter_names", "names of loaded LoRAs, each once", name, advice=advice))
        each = weights if isinstance(weights, (list, tuple)) else [1.0 if weights is None else weights] * len(given)
        if len(each) != len(given):
            requirement = f"a number, or a list of {len(given)} numbers, one for each name"
            raise ValueError(must_be("adapter_weights", requirement, weights))
        chosen = {name: strength("adapter_weights", one) for name, one in zip(given, each, strict=True)}
        self._set({name: replace(one, weight=chosen.get(name, 0.0)) for name, one in self._loaded.items()}, copies)

    def unload(self, copies: Sequence[Any]) -> None:
        """Take all LoRAs out: the weights are again what they were, to the bit."""
        self._set({}, copies)

    def _set(self, loaded: dict[str, Adapter], copies: Sequence[Any]) -> None:
        self._loaded, before = {}, self._loaded
        try:
            self._merged.merge([(change, one.weight) for one in loaded.values() for change in one.changes], copies)
        except BaseException:
            if before:
                logger.warning("All LoRAs are unloaded, since merging failed: %s.", ", ".join(before))
            raise
        self._loaded = loaded

    def _free_name(self, path: Path) -> str:
        stem = path.resolve().name if path.is_dir() else path.stem
        name, number = stem, 2
        while name in self._loaded:
            name, number = f"{stem}-{number}", number + 1
        return name


def report(file: LoraFile) -> None:
    """Say in the log what a file changes, and list the keys that mean nothing here."""
    logger.info("%s changes %d layers of the DiT.", file.path, len(file.changes))
    if file.unmatched:
        first = ", ".join(file.unmatched[:MOST_NAMED])
        more = f" and {len(file.unmatched) - MOST_NAMED} more" if len(file.unmatched) > MOST_NAMED else ""
        logger.warning(
            "%s: %d keys match nothing in DeepGen's DiT and have no effect: %s%s.",
            file.path, len(file.unmatched), first, more,
        )  # fmt: skip
