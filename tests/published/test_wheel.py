"""The wheel: exactly the library, and at work far from the checkout, without ComfyUI."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest
from PIL import Image

from deepgen_npu.locations import DEMO_FOLDER
from dev.layered_environment import PIP, make_layer, site_packages
from dev.published_tree import ROOT


DEMO = DEMO_FOLDER

# Each module's file; `__main__` would run the command.
_IMPORT_ALL = """
import importlib, json, pkgutil
import deepgen_npu
names = [module.name for module in pkgutil.walk_packages(deepgen_npu.__path__, "deepgen_npu.")]
files = {name: importlib.import_module(name).__file__ for name in names if not name.endswith(".__main__")}
print(json.dumps({"deepgen_npu": deepgen_npu.__file__, **files}))
"""


class Built(NamedTuple):
    wheel: Path
    output: str


class Installed(NamedTuple):
    """An environment in which the wheel was installed, and a folder that is not the checkout."""

    python: Path
    elsewhere: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.python.with_name(program)), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.elsewhere, env=_environment(), capture_output=True, text=True, encoding="utf-8"
        )


def _environment() -> dict[str, str]:
    # With PYTHONPATH the checkout could be found, and without bytecode setuptools warns.
    dropped = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"PYTHONUTF8": "1"}


def _tracked(*paths: str) -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", *paths], check=True, capture_output=True)
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """As `pip install` of the repository builds it; in a copy, since setuptools writes into the folder it builds."""
    folder = tmp_path_factory.mktemp("build")
    for name in _tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, *PIP, "wheel", "--verbose", "--no-deps", "--wheel-dir", str(folder), "./source"]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return Built(wheel, done.stdout + done.stderr)


def _install(folder: Path, wheel: Path, seen: list[Path], *options: str) -> Installed:
    python = make_layer(folder / "environment", Path(sys.executable), seen)
    command = [str(python), *PIP, "install", "--quiet", *options, str(wheel)]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (folder / "elsewhere").mkdir()
    return Installed(python, folder / "elsewhere")


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With its declared dependencies, which the packages of this interpreter are."""
    return _install(tmp_path_factory.mktemp("layer"), built.wheel, site_packages(Path(sys.executable)))


def test_building_it_warns_of_nothing(built: Built):
    """Such as of tables in pyproject.toml that a later setuptools will refuse."""
    assert "Building wheel for deepgen" in built.output
    assert [line for line in built.output.splitlines() if re.search(r"\w+Warning\b|deprecated", line)] == []


def test_it_holds_exactly_the_library(built: Built):
    with ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == set(_tracked("deepgen_npu"))
    assert "deepgen_npu/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in about)


def test_what_it_needs_is_there_already(installed: Installed):
    """The versions that the tests run with are among those it declares, so that pip adds nothing else."""
    (own, *_) = site_packages(installed.python)
    added = {path.name.split("-")[0] for path in own.glob("*.dist-info")}
    assert added - {"pip", "setuptools"} == {"deepgen"}


def test_every_module_is_imported_from_it(installed: Installed):
    done = installed.run("python", "-c", _IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout.splitlines()[-1])
    (own, *_) = site_packages(installed.python)
    assert len(files) == sum(not name.endswith("__main__.py") for name in _tracked("deepgen_npu/*.py"))
    assert [file for file in files.values() if not Path(file).is_relative_to(own)] == []


def test_importing_it_prints_nothing(installed: Installed):
    done = installed.run("python", "-c", "import deepgen_npu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_its_command_checks_a_model(installed: Installed):
    done = installed.run("deepgen", "check", DEMO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{DEMO} is complete.\n")


def test_its_command_draws_a_picture(installed: Installed):
    options = ["--device", "cpu", "--num_inference_steps", 4, "--output_image", "drawn.png"]
    done = installed.run("deepgen", "generate", "--model_path", DEMO, "--prompt", "a large red circle", *options)
    assert done.returncode == 0, done.stderr
    with Image.open(installed.elsewhere / "drawn.png") as image:
        assert json.loads(image.text["deepgen"])["prompt"] == "a large red circle"
        assert max(high - low for low, high in image.convert("RGB").getextrema()) > 64


def test_its_doctor_finds_nothing_missing(installed: Installed):
    found = json.loads(installed.run("deepgen", "doctor", "--json").stdout)
    assert found["packages"]["diffusers"] and found["packages"]["transformers"]
    about_packages = [one["what"] for one in found["findings"] if re.search("is not installed|must be", one["what"])]
    assert about_packages == []


@pytest.fixture(scope="module")
def bare(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Without any other package."""
    return _install(tmp_path_factory.mktemp("bare"), built.wheel, [], "--no-deps")


def test_its_doctor_names_what_is_missing(bare: Installed):
    """Without the requirements file of the pack: by the metadata of the wheel, and no package of an extra."""
    done = bare.run("deepgen", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    missing = {one["what"].removesuffix(" is not installed in this Python") for one in findings}
    assert missing == {"torch", "requests", "huggingface_hub", "transformers", "diffusers"}


def test_its_commands_tell_how_to_install_the_rest(bare: Installed):
    done = bare.run("deepgen", "generate", "--model_path", DEMO, "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: The package PIL is not installed. To fix it:\n    pip install "deepgen[run]"\n'
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^run = \[.*"Pillow"', project, re.MULTILINE)
