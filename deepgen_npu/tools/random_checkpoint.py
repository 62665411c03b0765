"""Checkpoints with random weights in the published layout: for tests, demonstrations and measurements.

Folders, files, tensor names, dtypes and config keys are those of ``deepgenteam/DeepGen-1.0-diffusers``; the
pictures are noise. Names and shapes come from the models themselves, built without memory, so that the files
follow the configs below and nothing else. Weights are drawn and written in pieces: writing a checkpoint takes
some hundred MB, whatever its size.
"""

from __future__ import annotations

import os
import secrets
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..checkpoint.index_keys import RANDOM_WEIGHTS_KEY
from ..errors import CheckpointError
from ..files import read_json
from .layout import WeightFile, text_files, weight_files
from .model_sizes import Size, find_size
from .random_values import random_values


def write(folder: str | os.PathLike[str], size: str | Size = "tiny", seed: int = 0) -> Path:
    """Write a checkpoint with random weights.

    The folder appears, or is replaced, only when everything is written. The same size and seed give the same
    bytes with every version of the libraries.

    Args:
        folder: New, empty, or an earlier random checkpoint without files of anyone else.
        size: A key of `SIZES`, or a size of one's own. ``published`` needs 14 GB on disk.
        seed: Of the weights.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: When the folder holds anything else; it is then left as it is.
        ValueError: For an unknown size.
    """
    chosen = find_size(size)
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    files = weight_files(size)
    texts = text_files(chosen, files, size if isinstance(size, str) else "of its own", seed)
    _require_replaceable(folder, {*texts, *(file.name for file in files)})

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that nobody who looks for checkpoints meanwhile finds it.
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        for name, text in texts.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
        generator = torch.Generator("cpu").manual_seed(seed)
        for file in files:
            with (temporary / file.name).open("wb") as output:
                _write_weights(output, file, chosen.configs["transformer"], generator)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_random_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `write`, by the marker in its ``model_index.json``."""
    try:
        return read_json(Path(folder) / "model_index.json").get(RANDOM_WEIGHTS_KEY) is True
    except (OSError, ValueError):
        return False


# Values


def _write_weights(
    output: BinaryIO, file: WeightFile, transformer: Mapping[str, Any], generator: torch.Generator
) -> None:
    """The safetensors format: 8 bytes (little-endian header length), the header as JSON, the data."""
    header = file.header()
    output.write(struct.pack("<Q", len(header)))
    output.write(header)
    for name, shape in file.shapes.items():
        for piece in random_values(name, shape, transformer, generator):
            output.write(piece.to(file.torch_dtype).contiguous().view(-1).view(torch.uint8).numpy().data)


# The folder


def _require_replaceable(folder: Path, own: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a folder is wanted.")
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if not found and not any(folder.iterdir()):
        return
    if not is_random_checkpoint(folder):
        raise CheckpointError(
            f"{folder} is not empty and is no random checkpoint (model_index.json with {RANDOM_WEIGHTS_KEY}); "
            "nothing was written. Name another folder."
        )
    foreign = sorted({path.relative_to(folder).as_posix() for path in found} - own)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise CheckpointError(
            f"{folder} is an earlier random checkpoint, but also holds {', '.join(foreign[:3])}{more}, "
            "which would be lost; nothing was written. Name another folder."
        )


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``; what was there before comes back if that fails."""
    if not folder.exists():
        temporary.rename(folder)
        return
    earlier = folder.with_name(f"{temporary.name}.earlier")
    folder.rename(earlier)
    try:
        temporary.rename(folder)
    except BaseException:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier)
