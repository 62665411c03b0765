from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui, unavailable
from golden import TINY
from published.packs import MODEL, NEIGHBOUR, VARIABLE, missing_packs, named_packs

from dev.comfyui.checkouts import Checkout
from dev.comfyui.server import PACK_NAME, ComfyServer, ServerOptions
from dev.layered_environment import PIP, make_layer, site_packages
from dev.published_tree import write_published_tree


_reports: list[tuple[str, list[str]]] = []


@pytest.fixture
def report() -> Callable[[str, list[str]], None]:
    """A titled list of lines that is printed at the end of the run."""
    return lambda title, lines: _reports.append((title, lines))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, lines in _reports:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


checkout = each_comfyui("the pack in somebody's ComfyUI")


def _lay_out(base: Path) -> None:
    write_published_tree(base / "custom_nodes" / PACK_NAME)
    shutil.copytree(TINY, base / "models" / "deepgen" / MODEL)


@pytest.fixture(scope="session")
def published(checkout: Checkout) -> Iterator[ComfyServer]:
    """A server with the pack as the registry publishes it, and one that uses diffusers."""
    options = ServerOptions(packs={"a_neighbour": NEIGHBOUR}, prepare=_lay_out)
    with ComfyServer(checkout, options) as server:
        yield server


@pytest.fixture(scope="session")
def other_packs() -> list[Path]:
    if missing := missing_packs():
        unavailable(f"the pack together with {' and '.join(missing)}; clone them, or set {VARIABLE}")
    return named_packs()


@pytest.fixture(scope="session")
def crowded(
    checkout: Checkout, other_packs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A server with ComfyUI-Manager and another public pack, whose requirements a layer of its own receives."""
    assert checkout.python is not None
    layer = make_layer(tmp_path_factory.mktemp("layer"), checkout.python, site_packages(checkout.python))
    files = [str(path / "requirements.txt") for path in other_packs]
    install = [str(layer), *PIP, "install", "--quiet", *(word for path in files for word in ("-r", path))]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        unavailable(f"the pack together with others, whose requirements do not install: {installed.stderr[-300:]}")

    def lay_out(base: Path) -> None:
        _lay_out(base)
        for path in other_packs:
            # A copy, because packs write into their own folder.
            shutil.copytree(path, base / "custom_nodes" / path.name, ignore=shutil.ignore_patterns(".git"))

    with ComfyServer(replace(checkout, python=layer), ServerOptions(packs={}, prepare=lay_out)) as server:
        yield server
