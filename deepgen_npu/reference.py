"""References: a run written down on one machine, to be repeated and compared on another.

A folder with ``latents.safetensors``, ``picture.png`` and ``reference.json``: settings, the model's fingerprint,
versions and device.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .checkpoint import PARTS, Checkpoint
from .runs import RunSettings


FORMAT = 1
"""Of ``reference.json``."""

_FILES = ("reference.json", "latents.safetensors", "picture.png")
_SAMPLE_BYTES = 64  # from the begin of each tensor


@dataclass(frozen=True)
class Reference:
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
            ValueError: When there is something of that name, see `require_new`.
        """
        from safetensors.torch import save_file

        require_new(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir()
            save_file({"latents": self.latents.detach().cpu().contiguous()}, temporary / "latents.safetensors")
            self.picture.save(temporary / "picture.png")
            facts = {
                "format": FORMAT,
                "model": self.model,
                "fingerprint": self.fingerprint,
                "dtype": self.dtype,
                "settings": vars(self.settings),
                "machine": dict(self.machine),
            }
            text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
            (temporary / "reference.json").write_text(text, encoding="utf-8")
            if folder.is_dir():
                folder.rmdir()  # it is empty
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read a folder.

        Raises:
            ValueError: Naming what is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for name in _FILES:
            if not (folder / name).is_file():
                raise ValueError(f"There is no {folder / name}; a folder that `verify --save` wrote is wanted.")
        try:
            facts = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, this version reads {FORMAT}")
            with Image.open(folder / "picture.png") as picture:
                picture.load()
            return cls(
                latents=load_file(folder / "latents.safetensors")["latents"],
                picture=picture,
                settings=RunSettings(**facts["settings"]),
                model=facts["model"],
                fingerprint=facts["fingerprint"],
                dtype=facts["dtype"],
                machine=facts["machine"],
            )
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise ValueError(f"The reference in {folder} cannot be read: {error}") from error


def require_new(folder: Path) -> None:
    """Refuse a folder to write to that is not new or empty; call it before anything slow.

    Raises:
        ValueError: Naming what is there.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; the name of a new or empty folder is wanted.")


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
                with tensor.file.open("rb") as file:
                    file.seek(tensor.offset)
                    digest.update(file.read(min(_SAMPLE_BYTES, tensor.nbytes)))
    return digest.hexdigest()
