"""The folder ``models/deepgen`` and the models in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import folder_paths

from ..deepgen_npu.checkpoint.folder import is_model_folder, model_folders, modelscope_spelling
from ..deepgen_npu.checks import must_be
from ..deepgen_npu.formatting import command
from ..deepgen_npu.hub.download import DOWNLOAD_SIZE, MODEL_ID
from ..deepgen_npu.locations import DEMO_FOLDER
from .names import DEMO, EITHER, FOLDER


PUBLISHED = MODEL_ID.split("/")[1]
"""Offered even before it is there, so that a shared workflow names the same model on every machine."""


def register_model_folder() -> None:
    """Make ``models/deepgen`` known to ComfyUI; a ``deepgen:`` entry in extra_model_paths.yaml adds to it."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def model_choices() -> tuple[list[str], str]:
    """The loader's list, and what a new loader has.

    The list is the published model, every other checkpoint folder, that or the demo, the demo. The demo is also the
    default, as long as there is no other model.
    """
    folders = _folders()
    others = sorted(name for name in folders if name not in (PUBLISHED, EITHER, DEMO))
    default = DEMO
    if folders:
        default = PUBLISHED if _published(folders) else min(folders)
    return [PUBLISHED, *others, EITHER, DEMO], default


def find_model(name: object) -> Path:
    """The folder of a model name.

    Only folders found inside the registered model folders have names, so no workflow can point elsewhere.

    Raises:
        ValueError: When there is no such model; the message says how to get it.
    """
    folders = _folders()
    if isinstance(name, str) and name in folders:
        return folders[name]
    if name == EITHER:
        return _published(folders) or DEMO_FOLDER
    if name == DEMO:
        return DEMO_FOLDER
    roots = folder_paths.get_folder_paths(FOLDER)
    if name == PUBLISHED:
        if folder := _published(folders):
            return folder
        target = os.path.join(roots[0], PUBLISHED)
        download = command(f'python -m deepgen_npu download --to "{target}"')
        raise ValueError(
            f"model {PUBLISHED} is not downloaded yet. Run in the folder of this node pack:{download}"
            f"It fetches {DOWNLOAD_SIZE}; where Hugging Face cannot be reached, add --source modelscope. "
            f"Then press R. To try the nodes without it, choose {DEMO!r}."
        )
    found = ", ".join(sorted(folders)) or "none"
    advice = f"Found: {found}. Put its folder there and press R."
    raise ValueError(must_be("model", f"a model in {' or '.join(roots)}", name, advice=advice))


def all_folders() -> list[Path]:
    """The folder of every model."""
    return [*_folders().values(), DEMO_FOLDER]


def state_of(*folders: Path) -> str:
    """A digest that changes when a file in one of the folders does.

    A file that vanishes meanwhile, or whose state cannot be read, is no error here, but of whoever reads it.
    """
    found = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (os.path.join(place, name) for name in names):
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    found.append((path, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _published(folders: dict[str, Path]) -> Path | None:
    """The published model, wherever it lies; ModelScope spells its folder differently."""
    for name, folder in folders.items():
        if name.rsplit("/", 1)[-1] in (PUBLISHED, modelscope_spelling(PUBLISHED)):
            return folder
    return None


def _folders() -> dict[str, Path]:
    """Checkpoint folders by their path below the registered folder that holds them, with forward slashes."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        if is_model_folder(root):
            found.setdefault(root.name, root)
        for folder in model_folders(root):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found
