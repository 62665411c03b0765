"""What decides about the images of a row, in 64 digits: the same digits, the same images. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checks import shown
from .rows import Row


if TYPE_CHECKING:
    from PIL import Image


DRAWING = 2
"""Version of the code that draws; raised whenever it draws other images from the same settings."""

_CHUNK = 1 << 20
_REMEMBERED = 4096
"""Rows beside each other often have the same image."""

FileState = tuple[int, int, str]
"""Size in bytes, time of change in nanoseconds and SHA-256 of a file."""


class References:
    """Hashes of the files that rows name. What has the size and the time that it had is not read again."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, FileState] = OrderedDict()

    def of(self, row: Row, known: Mapping[str, Sequence[Any]] | None = None) -> dict[str, FileState]:
        """For each file of a row, by its path.

        Args:
            row: With ``images`` and ``mask``.
            known: From its line of the manifest.

        Raises:
            OSError: When one cannot be read.
        """
        names = [*row.images, *([row.mask] if row.mask else [])]
        return {name: self._state(name, (known or {}).get(name)) for name in names}

    def _state(self, name: str, known: Sequence[Any] | None) -> FileState:
        found = os.stat(name)
        now = found.st_size, found.st_mtime_ns
        for before in (self._recent.get(name), known):
            if before is not None and tuple(before[:2]) == now:
                state = (*now, str(before[2]))
                break
        else:
            state = (*now, _hash_file(Path(name)))
        self._recent[name] = state
        self._recent.move_to_end(name)
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return state


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(row: Row, run: Mapping[str, Any], references: Mapping[str, FileState]) -> str:
    """Of the images of a row.

    Args:
        row: Its number, its id and its further columns decide about nothing.
        run: What is the same for all rows: the model, its dtype, and so on.
        references: As `References.of` returns them: the content counts, not the name.
    """
    settings = row.settings()
    settings["images"] = [references[name][2] for name in row.images]
    settings["mask"] = references[row.mask][2] if row.mask else None
    content = json.dumps([DRAWING, dict(run), settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def differences(row: Row, run: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """Which settings of an image that is there differ from those of a row: by name, in words.

    Args:
        row: As it is now.
        run: As for `fingerprint`.
        stored: What its PNG says (see `drawing.parameters`).
    """
    batch = stored.get("batch")
    if not isinstance(batch, dict):
        return {"origin": "another than batch"}
    before = {**stored, **batch.get("settings", {})}
    now = {**row.settings(), **run}
    found = {
        name: f"{shown(before.get(name))} instead of {shown(value)}"
        for name, value in now.items()
        if name not in ("images", "mask") and before.get(name) != value
    }
    return found or ({"images": "other content"} if row.images else {"program": "an earlier version"})


def pixels_hash(image: Image.Image) -> str:
    """SHA-256 of the pixels of an RGB image, row by row."""
    return hashlib.sha256(image.tobytes()).hexdigest()
