"""Write the pack as the registry publishes it: the files that git tracks, without those that .comfyignore names.

python -m dev.published_tree FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dev import ROOT


def _tracked(*options: str) -> set[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *options]
    out = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    return set(filter(None, out.split("\0")))


def published_files() -> list[str]:
    """Sorted paths below the root. git reads .comfyignore, whose syntax is that of .gitignore."""
    left_out = _tracked("--cached", "--ignored", "--exclude-from", str(ROOT / ".comfyignore"))
    return sorted(name for name in _tracked("--cached") - left_out if (ROOT / name).is_file())


def write_published_tree(folder: Path) -> Path:
    """Copy the published files into a folder, and return it."""
    for name in published_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder


if __name__ == "__main__":
    print(write_published_tree(Path(sys.argv[1])))
