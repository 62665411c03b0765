"""Where this pack, its models and what it remembers are."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from .checkpoint.files import how_to_download
from .errors import UsageError
from .formatting import command
from .hub.download import MODEL_ID, find_downloaded


PACK = Path(__file__).absolute().parents[1]
"""The folder of the node pack. Never resolved: a pack that is linked into custom_nodes belongs to the ComfyUI there.
Where only the library is installed, it is a folder of packages without the files below."""

DEMO_FOLDER = PACK / "demo_checkpoint"
"""The small model that comes with the pack."""


def downloaded_model() -> Path:
    """The folder of DeepGen 1.0, which may be incomplete.

    Raises:
        UsageError: When it is not downloaded; the message says how to.
    """
    folder = comfyui_target()
    if folder is None or not folder.is_dir():
        folder = find_downloaded()
    if folder is None:
        message = f"No --model_path was given and {MODEL_ID} is not downloaded. {how_to_download()}"
        if DEMO_FOLDER.is_dir():
            option = f'--model_path "{DEMO_FOLDER}"'
            message += f" To try the small demo model instead, add:{command(option)}"
        raise UsageError(message.rstrip())
    return folder


def cache_folder() -> Path:
    """The folder for what can be made again, in the user's own; it may not exist yet."""
    usual = {"win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local"), "darwin": "~/Library/Caches"}
    base = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")
    try:
        return Path(base).expanduser() / "deepgen_npu"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "deepgen_npu"


def comfyui_target() -> Path | None:
    """The folder of DeepGen 1.0 in the ComfyUI in whose custom_nodes this pack lies, or None."""
    comfyui = PACK.parents[1]
    if PACK.parent.name == "custom_nodes" and (comfyui / "models").is_dir():
        return comfyui / "models" / "deepgen" / MODEL_ID.split("/")[1]
    return None
