"""The commands ``check`` and ``download``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.folder import PARTS, Checkpoint, resolve_model
from ..errors import CheckpointError
from ..formatting import format_bytes
from ..hub.download import DOWNLOAD_SIZE, MODEL_ID, SOURCES
from ..locations import comfyui_target
from . import options


def add_commands(commands: Any) -> None:
    """Register the commands with those of `entry`."""
    check = commands.add_parser("check", help="check that a model folder is complete")
    check.add_argument(
        "model_path", type=options.path("model_path"), help="a folder, or the Hugging Face id of a downloaded model"
    )
    check.set_defaults(run=_check)

    download = commands.add_parser("download", help=f"download DeepGen 1.0, {DOWNLOAD_SIZE}, or complete a download")
    download.add_argument("--source", choices=SOURCES, default="huggingface")
    download.add_argument(
        "--to",
        metavar="DIR",
        type=options.path("--to"),
        help="folder for the files (default: models/deepgen of the ComfyUI this pack is installed in, otherwise the "
        "hub's own cache)",
    )
    download.set_defaults(run=_download)


def _check(arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path))
    print(f"{checkpoint.folder} is complete.")
    for part in PARTS:
        print(f"  {part}: {len(checkpoint.tensors[part])} tensors, {format_bytes(checkpoint.nbytes(part))}")


def _download(arguments: argparse.Namespace) -> None:
    from ..hub.download import DownloadStopped, download

    target = Path(arguments.to).expanduser() if arguments.to else comfyui_target()
    print(f"Downloading {MODEL_ID} from {arguments.source} to {target or 'its cache'} ...")
    folder = download(arguments.source, target)
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        raise CheckpointError(f"The download finished, but the folder is not valid: {error}") from None
    except KeyboardInterrupt:
        raise DownloadStopped(f"Stopped. All files are in {folder}, but they were not checked.") from None
    print(f"Complete: {checkpoint.folder}")
