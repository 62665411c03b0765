"""The folder ``models/loras`` and the LoRAs in it that can be read without trust."""

from __future__ import annotations

import contextlib
import hashlib
import os
from difflib import get_close_matches

import folder_paths

from ..deepgen_npu.checks import must_be


FOLDER = "loras"
"""ComfyUI's own, which its LoRA nodes share."""

SUFFIX = ".safetensors"


def lora_choices() -> list[str]:
    """Names below the folder. Other formats can run code when they are read."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(SUFFIX)]


def find_lora(name: object) -> str:
    """The path of a name in the list; no workflow can point elsewhere.

    Raises:
        ValueError: When there is no such file; the message says where to put it.
    """
    choices = lora_choices()
    path = folder_paths.get_full_path(FOLDER, name) if isinstance(name, str) and name in choices else None
    if path is None:
        requirement = f"a {SUFFIX} file in {' or '.join(folder_paths.get_folder_paths(FOLDER))}"
        nearest = get_close_matches(name, choices) if isinstance(name, str) else ()
        raise ValueError(must_be("lora_name", requirement, name, nearest, "Put the file there and press R."))
    return path


def state_of_loras(name: str | None) -> str:
    """A digest that changes when a LoRA does, or the settings that PEFT keeps beside it.

    Args:
        name: In the list; None is all of them.
    """
    found = []
    for one in lora_choices() if name is None else [name]:
        path = find_lora(one)
        for file in (path, os.path.join(os.path.dirname(path), "adapter_config.json")):
            with contextlib.suppress(OSError):  # whoever reads it says what is wrong
                status = os.stat(file)
                found.append((file, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
