"""Virtual environments for the ComfyUI checkouts that the tests run against.

    python -m dev.comfyui_environments

A checkout whose interpreter is known (COMFYUI_PYTHON, or an environment of its own) is left alone. For every
other one ``.venv-comfyui-<version>`` is made here, with the requirements of ComfyUI and a library pair: ComfyUI
0.3.64 gets that of the Ascend stack, newer ones the newer pair. Only the versions that the tests run on get one: see
DEEPGEN_ALL_COMFYUI in dev/comfyui/checkouts.py. A newer front end is downloaded as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from dev import ROOT
from dev.comfyui.checkouts import NEXT_FRONT_END, NEXT_FRONT_END_FILES, NEXT_FRONT_END_FOLDER, Checkout, find_checkouts
from dev.link_packages import main as link_packages


REQUIREMENTS = Path(__file__).with_name("requirements")


# Compiled against CUDA builds of torch where pip offers no other; the tests' launcher copes with that, and
# their dependencies would replace torch.
_WITHOUT_DEPENDENCIES = {"torchvision": "torchvision==0.28.0", "kornia": "kornia", "spandrel": "spandrel"}
# What these need besides torch.
_THEIR_DEPENDENCIES = ("kornia_rs",)
_LEFT_OUT = {"torchaudio"}


def make(checkout: Checkout) -> None:
    """Make the environment of one checkout, unless it exists."""
    assert checkout.version is not None
    folder = ROOT / f".venv-comfyui-{checkout.version}"
    done = folder / "installed"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = REQUIREMENTS / ("constraints-ascend.txt" if checkout.version_tuple < (0, 4) else "constraints.txt")
    if done.is_file():
        return
    print(f"Making {folder.name} for {checkout.path} ...", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    names = {*_WITHOUT_DEPENDENCIES, *_LEFT_OUT}
    lines = (checkout.path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if _package(line) not in names]
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text("\n".join(wanted), encoding="utf-8")
        link_packages(folder, constraints, requirements, ROOT / "requirements.txt")
        wanted_files = ["-c", str(constraints), "-r", str(requirements), "-r", str(ROOT / "requirements.txt")]
        subprocess.run([*install, *wanted_files, *_THEIR_DEPENDENCIES], check=True)
    subprocess.run([*install, "--no-deps", *_WITHOUT_DEPENDENCIES.values()], check=True)
    done.touch()


def add_front_end() -> None:
    """Download the newer front end: files for the browser, which need no environment."""
    if not NEXT_FRONT_END_FILES.is_dir():
        wanted = ["--no-deps", "--target", str(NEXT_FRONT_END_FOLDER), f"comfyui-frontend-package=={NEXT_FRONT_END}"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)


def _package(requirement: str) -> str:
    """The name in a line of a requirements file."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower()


def main() -> None:
    checkouts = find_checkouts()
    if any(checkout.version for checkout in checkouts):
        add_front_end()
    for checkout in checkouts:
        if checkout.version and (checkout.python is None or checkout.python.is_relative_to(ROOT)):
            make(checkout)
        elif checkout.problem:
            print(f"{checkout.path}: {checkout.problem}")


if __name__ == "__main__":
    main()
