"""Baselines: runs that are saved on one machine, to be repeated and compared on another.

A folder with ``latents.safetensors``, ``picture.png`` and ``reference.json``: settings, the model's fingerprint,
versions and device.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..checks import Named, must, must_be, one_of
from ..dtypes import CHOICES, dtype_name
from ..files import (
    FileError,
    Rehearsed,
    as_json,
    new_folder,
    read_bytes,
    read_json,
    reason_of,
    require_room,
)
from ..formatting import format_size
from ..image_files import open_image, save_image
from .runs import RunSettings


FORMAT = 1
"""Of ``reference.json``."""

_FILES = ("reference.json", "latents.safetensors", "picture.png")
_MAX_LATENTS_BYTES = 256 << 20
"""The latents of 6144 x 6144 pixels have 36 MiB in float32."""
_MAX_FACTS_BYTES = 1 << 20


@dataclass(frozen=True)
class Baseline:
    """One run.

    Attributes:
        latents: [1, C, H/8, W/8], the final ones in scaled space.
        image: What they decode to.
        settings: What to run again.
        model: Its name, for people.
        fingerprint: See `fingerprint.fingerprint`.
        dtype: Of the weights.
        machine: Versions and device, for people.
    """

    latents: Tensor
    image: Image.Image
    settings: RunSettings
    model: str
    fingerprint: str
    dtype: str
    machine: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Write a folder completely or not at all.

        Args:
            folder: New or empty.

        Raises:
            FileError: When there is something else of that name.
            OSError: When it cannot be written.
        """
        from safetensors.torch import save

        facts = {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "settings": self.settings.as_dict(),
            "machine": dict(self.machine),
        }
        with new_folder(folder) as unfinished:
            # Written by Python, whose errors name a full disk.
            (unfinished / "latents.safetensors").write_bytes(
                save({"latents": self.latents.detach().cpu().contiguous()})
            )
            save_image(self.image, unfinished / "picture.png", {})
            (unfinished / "reference.json").write_text(as_json(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """Read a folder, which may contain anything.

        Args:
            folder: That `save` wrote.

        Raises:
            FileError: Naming what is missing or damaged.
        """
        for name in _FILES:
            if not os.path.lexists(folder / name):
                raise FileError(f"{folder / name} is missing. Name a folder that verify --save wrote.")
        where = folder / "reference.json"
        facts = read_json(where, _MAX_FACTS_BYTES)
        try:
            settings = _checked(facts)
        except (ValueError, TypeError) as error:
            raise FileError(f"{where}: {error}") from None
        image = open_image(folder / "picture.png")
        if image.size != (settings.width, settings.height):
            expected, found = format_size(settings.width, settings.height), Named(format_size(*image.size))
            raise FileError(must_be(f"{folder / 'picture.png'}", f"{expected} pixels, as in its settings", found))
        latents = _read_latents(folder / "latents.safetensors")
        return cls(latents, image, settings, facts["model"], facts["fingerprint"], facts["dtype"], facts["machine"])


def _checked(facts: Mapping[str, Any]) -> RunSettings:
    """The settings in ``reference.json``; everything else in it is checked, too."""
    if type(facts.get("format")) is not int or facts["format"] != FORMAT:
        raise ValueError(must_be("format", f"{FORMAT}", facts.get("format")))
    settings, machine = facts.get("settings"), facts.get("machine")
    if not isinstance(settings, dict):
        raise TypeError(must_be("settings", "an object", settings))
    if not isinstance(facts.get("model"), str):
        raise ValueError(must_be("model", "a string", facts.get("model")))
    name = facts.get("fingerprint")
    if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{64}", name):
        raise ValueError(must_be("fingerprint", "64 hexadecimal digits", name))
    one_of("dtype", facts.get("dtype"), CHOICES[1:])
    if not isinstance(machine, dict) or not all(isinstance(value, str) for value in machine.values()):
        raise TypeError(must_be("machine", "an object of strings", machine))
    return RunSettings.of(settings)


def _read_latents(path: Path) -> Tensor:
    from safetensors.torch import load

    content = read_bytes(path, _MAX_LATENTS_BYTES)
    try:
        tensors = load(content)
    except Exception as error:  # SafetensorError, and whatever torch raises for a dtype that it does not know
        raise FileError(f"{path} is not a safetensors file, or damaged ({reason_of(error)}).") from None
    latents = tensors.get("latents")
    if latents is None or len(tensors) > 1:
        raise FileError(must(f"{path}", "contain latents alone", sorted(tensors)))
    if latents.ndim != 4 or len(latents) != 1 or not latents.numel() or not latents.is_floating_point():
        found = Named(f"{dtype_name(latents.dtype)} {list(latents.shape)}")
        raise FileError(must(f"{path}", "contain floats of the shape [1, channels, height, width]", found))
    if not latents.float().isfinite().all():
        raise FileError(must(f"{path}", "contain finite latents", Named("NaN or infinite ones")))
    return latents


def rehearse(folder: Path, settings: RunSettings | None = None) -> None:
    """Check, before anything slow, whether `Baseline.save` can write a folder; nothing of the attempt remains.

    Args:
        folder: As for `Baseline.save`.
        settings: Of the run, if known: for the space that it needs.

    Raises:
        FileError: Naming what is in the way.
    """
    folder = Path(os.path.realpath(folder))
    try:
        with contextlib.suppress(Rehearsed), new_folder(folder) as unfinished:
            if settings is not None:
                require_room(unfinished, 8 * settings.height * settings.width + (1 << 20), "--save")
            (unfinished / "reference.json").write_bytes(b"{}")
            # Only this shows that the name is allowed.
            if folder.is_dir():
                mode = folder.stat().st_mode
                folder.rmdir()
                folder.mkdir(mode & 0o7777)
            else:
                folder.mkdir()
                folder.rmdir()
            raise Rehearsed
    except OSError as error:
        raise FileError(f"--save {folder} cannot be written: {reason_of(error)}.") from None
