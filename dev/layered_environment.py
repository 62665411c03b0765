"""A temporary virtual environment that sees the packages of another interpreter and leaves them alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path


PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def site_packages(python: Path) -> list[Path]:
    """The folders with the installed packages of an interpreter, without its standard library."""
    code = "import json, sysconfig; print(json.dumps([sysconfig.get_path(n) for n in ('purelib', 'platlib')]))"
    found = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in dict.fromkeys(json.loads(found))]


def make_layer(folder: Path, python: Path, seen: Iterable[Path]) -> Path:
    """Make an environment of ``python`` in ``folder``; returns its interpreter.

    pip counts packages in the folders ``seen`` as installed, but installs into ``folder`` alone. A package that it
    would have replaced then exists twice, and the new one is found first.
    """
    subprocess.run([str(python), "-m", "venv", str(folder)], check=True)
    layer = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    (own, *_) = site_packages(layer)
    (own / "layer.pth").write_text("".join(f"{path}\n" for path in seen), encoding="utf-8")
    return layer
