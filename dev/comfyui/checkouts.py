"""Find the ComfyUI checkouts to test against, and the interpreter that runs each.

Of those in the default places the oldest and the newest are tested with every change. What lies between is tested
before a release: with DEEPGEN_ALL_COMFYUI=1, or named by COMFYUI_PATH.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dev import ROOT


PATH_VARIABLE = "COMFYUI_PATH"
PYTHON_VARIABLE = "COMFYUI_PYTHON"
ALL_VARIABLE = "DEEPGEN_ALL_COMFYUI"
DEFAULT_PATHS = ("~/comfy/ComfyUI", "~/comfy/ComfyUI-0.8.0", "~/comfy/ComfyUI-0.33.0")
# Newer than that of any checkout: what ComfyUI's users get next.
NEXT_FRONT_END = "1.58.1"
NEXT_FRONT_END_FOLDER = ROOT / f".venv-comfyui-frontend-{NEXT_FRONT_END}"
NEXT_FRONT_END_FILES = NEXT_FRONT_END_FOLDER / "comfyui_frontend_package" / "static"


@dataclass(frozen=True)
class Checkout:
    """A ComfyUI source tree; `problem` says why it cannot be run, if it cannot."""

    path: Path
    version: str | None = None
    python: Path | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        return self.version or self.path.name

    @property
    def version_tuple(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version or ""))


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(os.pathsep)]


def _version(path: Path) -> str | None:
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", text)
    return match.group(1) if match else None


def _interpreter(path: Path, version: str, named: str) -> Path | None:
    if named:
        candidates = [Path(named).expanduser()]
    else:
        homes = [ROOT / f".venv-comfyui-{version}", path / ".venv", path / "venv"]
        programs = ("bin/python", "Scripts/python.exe")
        candidates = [home / program for home in homes for program in programs]
    # Not resolved: a virtual environment is recognised by the path of its interpreter link.
    return next((c.absolute() for c in candidates if c.is_file()), None)


def find_checkouts() -> list[Checkout]:
    """The checkouts to test: `all_checkouts` without those that are `left_out`."""
    spared = left_out()
    return [checkout for checkout in all_checkouts() if checkout not in spared]


def left_out() -> list[Checkout]:
    """The versions in the default places between the oldest and the newest, unless all are asked for."""
    if os.environ.get(PATH_VARIABLE) or os.environ.get(ALL_VARIABLE) == "1":
        return []
    known = [checkout for checkout in all_checkouts() if checkout.version]
    return sorted(known, key=lambda checkout: checkout.version_tuple)[1:-1]


def all_checkouts() -> list[Checkout]:
    """Every checkout named by COMFYUI_PATH, else those of the default places that exist.

    Returned are also checkouts that cannot be run (see `Checkout.problem`), so that a typing
    error in the environment is reported and never mistaken for "nothing to test".
    """
    named = os.environ.get(PATH_VARIABLE, "")
    if named:
        paths = [Path(p).expanduser() for p in _split(named) if p]
    else:
        paths = [p for p in (Path(d).expanduser() for d in DEFAULT_PATHS) if p.is_dir()]
    pythons = _split(os.environ.get(PYTHON_VARIABLE, ""))
    found = []
    for index, path in enumerate(paths):
        version = _version(path)
        if version is None:
            problem = f"{path} is no checkout (no comfyui_version.py), see {PATH_VARIABLE}"
            found.append(Checkout(path, problem=problem))
            continue
        python = _interpreter(path, version, pythons[index] if index < len(pythons) else "")
        problem = None if python else f"no Python interpreter for it, set {PYTHON_VARIABLE}"
        found.append(Checkout(path, version, python, problem))
    return found
