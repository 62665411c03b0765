"""Checkpoints with random weights in the published layout (`layout`): for tests and measurements.

Their images are noise. Weights are drawn and written file by file, so writing a checkpoint takes the memory of its
largest file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..checkpoint.index_keys import RANDOM_WEIGHTS_KEY
from ..checks import Named, must_be
from ..errors import CheckpointError
from ..files import new_folder, read_json
from .layout import text_files, weight_files
from .model_sizes import Size, find_size
from .random_values import random_tensor


def write(folder: str | os.PathLike[str], size: str | Size = "tiny", seed: int = 0) -> Path:
    """Write a checkpoint with random weights.

    The folder appears, or is replaced, only when everything is written. The same size and seed give the same
    bytes with every version of the libraries.

    Args:
        folder: New, empty, or an earlier random checkpoint without other files.
        size: A key of `SIZES`, or a size of your own. ``published`` needs 14 GB on disk and 5 GB of memory.
        seed: Of the weights.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: When the folder contains anything else; it is then left as it is.
        ValueError: For an unknown size.
    """
    chosen = find_size(size)
    folder = Path(os.path.realpath(Path(folder).expanduser()))
    files = weight_files(size)
    texts = text_files(chosen, files, size if isinstance(size, str) else "of its own", seed)
    _require_replaceable(folder, {*texts, *(file.name for file in files)})

    with new_folder(folder, replace=True) as unfinished:
        for name, text in texts.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_text(text, encoding="utf-8", newline="\n")
        generator = torch.Generator("cpu").manual_seed(seed)
        transformer = chosen.configs["transformer"]
        for file in files:
            tensors = {
                name: random_tensor(name, shape, transformer, generator, file.torch_dtype)
                for name, shape in file.shapes.items()
            }
            file.save(unfinished / file.name, tensors)
            del tensors  # before those of the next file are drawn
    return folder


def is_random_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `write`, by the mark in its ``model_index.json``."""
    try:
        return read_json(Path(folder) / "model_index.json").get(RANDOM_WEIGHTS_KEY) is True
    except (OSError, ValueError):
        return False


def _require_replaceable(folder: Path, own: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(must_be(f"{folder}", "a folder", Named("a file")))
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if not found and not any(folder.iterdir()):
        return
    if not is_random_checkpoint(folder):
        raise CheckpointError(
            f"{folder} is not empty and not a random checkpoint (model_index.json with {RANDOM_WEIGHTS_KEY}); "
            "nothing was written. Name another folder."
        )
    foreign = sorted({path.relative_to(folder).as_posix() for path in found} - own)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise CheckpointError(
            f"{folder} is an earlier random checkpoint, but also contains {', '.join(foreign[:3])}{more}, "
            "which would be lost; nothing was written. Name another folder."
        )
