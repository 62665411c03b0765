"""How weights are read in ComfyUI."""

from __future__ import annotations

from comfy.cli_args import args


def disable_mmap() -> bool:
    """ComfyUI's own ``--disable-mmap``, for our files as for those of all other models."""
    return bool(vars(args).get("disable_mmap"))
