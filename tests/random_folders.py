"""The files of a folder that has a random checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path


# Of every file of the tiny checkpoint with seed 0; equal on both lines of the libraries.
TINY_SHA256 = "d431285d5d591a76201bfb7de90d118435252a5058b7c5c821baf3d02c100776"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, content in files_of(folder).items():
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
