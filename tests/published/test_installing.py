"""Installing our requirements into somebody's ComfyUI adds packages and changes none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev import ROOT
from dev.layered_environment import PIP, make_layer, site_packages


def _requirements(path: Path) -> list[Requirement]:
    lines = (re.split(r"\s+#|^#", line)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def _closure(needed: Iterable[Requirement], installed: dict[str, Distribution]) -> set[str]:
    """The installed packages that these need, and what those need."""
    names: set[str] = set()
    waiting = [(requirement, "") for requirement in needed]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, asked_by = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked_by}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name in installed and (name, extra) not in seen:
                seen.add((name, extra))
                names.add(name)
                waiting += [(Requirement(text), extra) for text in installed[name].requires or ()]
    return names


def _without(packages: Iterable[Path], hidden: list[Distribution], view: Path) -> Path:
    """A folder of links to installed packages, all but the hidden ones."""
    left_out = {file.parts[0] for distribution in hidden for file in distribution.files or ()}
    view.mkdir()
    for folder in packages:
        for entry in folder.iterdir():
            if entry.name not in left_out and entry.name != "__pycache__" and entry.suffix != ".pth":
                (view / entry.name).symlink_to(entry)
    return view


def _freeze(python: Path) -> dict[str, str]:
    done = subprocess.run([str(python), *PIP, "freeze"], check=True, capture_output=True, text=True)
    return {re.split(r"==| @ ", line)[0].lower(): line for line in done.stdout.splitlines() if line[:1].isalnum()}


def test_our_requirements_change_no_installed_package(checkout, tmp_path, report):
    """In an environment of ComfyUI as it was before the pack, without our constraints.

    The environments of the tests have our requirements already, so what only we need is hidden from this one.
    """
    packages = site_packages(checkout.python)
    installed = {canonicalize_name(d.name): d for d in distributions(path=[str(p) for p in packages])}
    of_comfyui = _closure(_requirements(checkout.path / "requirements.txt"), installed)
    only_ours = _closure(_requirements(ROOT / "requirements.txt"), installed) - of_comfyui
    view = _without(packages, [installed[name] for name in only_ours], tmp_path / "packages")
    python = make_layer(tmp_path / "environment", checkout.python, [view])
    before = _freeze(python)
    assert {"torch", "transformers"} <= before.keys() and "diffusers" not in before
    install = [str(python), *PIP, "install", "--quiet", "-r", str(ROOT / "requirements.txt")]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = _freeze(python)
    changed = [f"{line} -> {after.get(name, 'gone')}" for name, line in before.items() if after.get(name) != line]
    added = sorted(f"+ {after[name]}" for name in after.keys() - before.keys())
    title = f"pip freeze of ComfyUI {checkout.id} before and after our requirements: {len(before)} packages before"
    report(title, [*added, *changed, f"{len(added)} added, {len(changed)} changed"])
    assert not changed
    assert any(line.startswith("+ diffusers==") for line in added)
