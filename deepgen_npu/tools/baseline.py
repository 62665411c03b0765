"""References: a run written down on one machine, to be repeated and compared on another.

A folder with ``latents.safetensors``, ``picture.png`` and ``reference.json``: settings, the model's fingerprint,
versions and device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..checkpoint.folder import PARTS, Checkpoint
from ..checks import shown
from ..dtypes import CHOICES
from ..files import FileError, Rehearsed, as_json, made, open_regular, read_bytes, read_json, reason_of, require_room
from ..image_files import open_image, save_image
from .runs import RunSettings


FORMAT = 1
"""Of ``reference.json``."""

_FILES = ("reference.json", "latents.safetensors", "picture.png")
# The latents of 6144 x 6144 pixels have 38 MB in float32.
_MAX_LATENTS_BYTES = 256 << 20
_MAX_FACTS_BYTES = 1 << 20
_SAMPLE_BYTES = 64  # from the begin of each tensor


@dataclass(frozen=True)
class Baseline:
    """One run.

    Attributes:
        latents: [1, C, H/8, W/8], the final ones in scaled space.
        settings: What to run again.
        model: Its name, for people.
        fingerprint: See `fingerprint`.
        dtype: Of the weights.
        machine: Versions and device, for people.
    """

    latents: Tensor
    picture: Image.Image
    settings: RunSettings
    model: str
    fingerprint: str
    dtype: str
    machine: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Write a new folder, whole or not at all.

        Raises:
            ValueError: When there is something of that name.
            OSError: When it cannot be written.
        """
        from safetensors.torch import save

        facts = {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "settings": vars(self.settings),
            "machine": dict(self.machine),
        }
        with _new_folder(folder) as unfinished:
            # Written by Python, whose errors tell a full disk from other trouble.
            (unfinished / "latents.safetensors").write_bytes(
                save({"latents": self.latents.detach().cpu().contiguous()})
            )
            save_image(self.picture, unfinished / "picture.png", {})
            (unfinished / "reference.json").write_text(as_json(facts, indent=2) + "\n", encoding="utf-8")

    def save_somewhere(self, folder: Path) -> tuple[Path, str | None]:
        """`save`, or else to a new folder in that of temporary files.

        Returns:
            Where the reference is, and why it is not at ``folder``; None when it is.

        Raises:
            FileError: When it could not be written anywhere.
        """
        try:
            self.save(folder)
            return folder, None
        except Exception as error:
            reason = reason_of(error)
        with contextlib.suppress(Exception):
            place = Path(tempfile.gettempdir()) / f"deepgen_reference_{secrets.token_hex(4)}"
            self.save(place)
            return place, reason
        raise FileError(f"{folder} cannot be written ({reason}), nor can the folder of temporary files.")

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """Read a folder, which may hold anything.

        Raises:
            FileError: Naming what is missing or damaged.
        """
        for name in _FILES:
            if not os.path.lexists(folder / name):
                raise FileError(f"There is no {folder / name}; a folder that `verify --save` wrote is wanted.")
        where = folder / "reference.json"
        facts = read_json(where, _MAX_FACTS_BYTES)
        try:
            settings = _checked(facts)
        except (ValueError, TypeError) as error:
            raise FileError(f"{where} is not a reference's: {error}") from None
        picture = open_image(folder / "picture.png")
        if picture.size != (settings.width, settings.height):
            raise FileError(
                f"{folder / 'picture.png'} has {picture.width} x {picture.height} pixels; its settings say "
                f"{settings.width} x {settings.height}."
            )
        latents = _read_latents(folder / "latents.safetensors")
        return cls(latents, picture, settings, facts["model"], facts["fingerprint"], facts["dtype"], facts["machine"])


def _checked(facts: Mapping[str, Any]) -> RunSettings:
    """The settings in ``reference.json``, after a look at all the rest of it."""
    if type(facts.get("format")) is not int or facts["format"] != FORMAT:
        raise ValueError(f"its format is {shown(facts.get('format'))}, this version reads {FORMAT}.")
    settings, machine = facts.get("settings"), facts.get("machine")
    if not isinstance(settings, dict):
        raise TypeError(f"settings is {shown(settings)}; an object is wanted.")
    for name, pattern, wanted in (
        ("model", r".*", "a string"),
        ("fingerprint", r"[0-9a-f]{64}", "64 hexadecimal digits"),
        ("dtype", "|".join(CHOICES[1:]), f"one of {', '.join(CHOICES[1:])}"),
    ):
        if not isinstance(facts.get(name), str) or not re.fullmatch(pattern, facts[name], re.DOTALL):
            raise ValueError(f"{name} is {shown(facts.get(name))}; {wanted} is wanted.")
    if not isinstance(machine, dict) or not all(isinstance(value, str) for value in machine.values()):
        raise TypeError(f"machine is {shown(machine)}; an object of strings is wanted.")
    return RunSettings.of(settings)


def _read_latents(path: Path) -> Tensor:
    from safetensors.torch import load

    content = read_bytes(path, _MAX_LATENTS_BYTES)
    try:
        tensors = load(content)
    except Exception as error:  # SafetensorError, and whatever torch raises at a dtype that it does not know
        raise FileError(f"{path} is no safetensors file, or damaged ({reason_of(error)}).") from None
    latents = tensors.get("latents")
    if latents is None or len(tensors) > 1:
        raise FileError(f"{path} holds {shown(sorted(tensors))}; latents alone are wanted.")
    if latents.ndim != 4 or len(latents) != 1 or not latents.numel() or not latents.is_floating_point():
        raise FileError(
            f"{path} holds latents of {str(latents.dtype).removeprefix('torch.')} and the shape "
            f"{list(latents.shape)}; floats of the shape [1, channels, height, width] are wanted."
        )
    if not latents.float().isfinite().all():
        raise FileError(f"{path} holds latents that are NaN or infinite; finite ones are wanted.")
    return latents


def rehearse(folder: Path, settings: RunSettings | None = None) -> None:
    """Find out, before anything slow, whether a reference can be written; nothing remains.

    Args:
        settings: Of the run, where they are known: for the room that it needs.

    Raises:
        FileError: Naming what is in the way.
    """
    folder = Path(os.path.realpath(folder))
    try:
        with contextlib.suppress(Rehearsed), _new_folder(folder) as unfinished:
            if settings is not None:
                require_room(unfinished, 8 * settings.height * settings.width + (1 << 20), "--save")
            (unfinished / "reference.json").write_bytes(b"{}")
            # Only this shows that the name can be had.
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


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``folder`` when the block ends well, else it is removed."""
    folder = Path(os.path.realpath(folder))
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileError(f"{folder} is there already; the name of a new or empty folder is wanted.")
    # Of fixed length, so that it is not longer than the file system allows where the name itself is not.
    unfinished = folder.parent / f".{secrets.token_hex(8)}"
    with made(folder.parent):
        try:
            unfinished.mkdir()
            yield unfinished
            if folder.is_dir():
                folder.rmdir()  # it is empty
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def fingerprint(checkpoint: Checkpoint, drawn: str = "") -> str:
    """A short name of a model's content, the same wherever it lies and however its files are split.

    It covers configs, prompt template and, for each tensor, name, dtype, shape and its first bytes: enough to tell
    any two trainings apart without reading 14 GB.

    Args:
        drawn: Of a model without files: what its weights are drawn from.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256(drawn.encode())

    def add(content: Any) -> None:
        digest.update(json.dumps(content, sort_keys=True).encode())

    add({name: dict(config) for name, config in checkpoint.stored_configs.items()})
    add(dict(checkpoint.prompt_template))
    for part in PARTS:
        for name, tensor in sorted(checkpoint.tensors[part].items()):
            add([part, name, tensor.dtype, list(tensor.shape)])
            if not drawn:
                with open_regular(tensor.file) as file:
                    file.seek(tensor.offset)
                    digest.update(file.read(min(_SAMPLE_BYTES, tensor.nbytes)))
    return digest.hexdigest()
