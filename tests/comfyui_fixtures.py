"""Fixtures for tests on real ComfyUI servers.

Import them into conftest.py and call `report_missing_comfyui` from its
`pytest_terminal_summary`. Override the session fixture `comfy_options` to lay out models, link
more packs or add arguments. Tests that start servers of their own take the checkouts from `each_comfyui`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from dev.comfyui.checkouts import ALL_VARIABLE, PATH_VARIABLE, PYTHON_VARIABLE, Checkout, find_checkouts, left_out
from dev.comfyui.server import ComfyServer, ServerOptions


if TYPE_CHECKING:
    from dev.comfyui.browser import Browser, ComfyPage
    from dev.comfyui.client import Client

REQUIRE_VARIABLE = "DEEPGEN_REQUIRE_COMFYUI"
NOT_PROVEN = "NOT PROVEN"

CHECKOUTS: list[Checkout | None] = [*find_checkouts()] or [None]
IN_TURN: Any = {"scope": "session", "params": CHECKOUTS, "ids": [c.id if c else "none" for c in CHECKOUTS]}
"""Of a fixture: pytest then orders the tests so that only one version runs at a time."""


def unavailable(reason: str) -> NoReturn:
    """Skip a test, loudly; with DEEPGEN_REQUIRE_COMFYUI=1, fail it."""
    message = f"{NOT_PROVEN}: {reason}"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{message} ({REQUIRE_VARIABLE}=1 forbids to skip)", pytrace=False)
    pytest.skip(message)


def runnable(checkout: Checkout | None, proof: str) -> Checkout:
    """A checkout that can be run; without one the test is skipped, which leaves the proof open."""
    if checkout is None:
        unavailable(f"{proof}; no checkout found, set {PATH_VARIABLE} (and {PYTHON_VARIABLE})")
    if checkout.problem:
        unavailable(f"{proof}, on ComfyUI {checkout.id}; {checkout.problem}")
    return checkout


def each_comfyui(proof: str) -> Any:
    """A fixture that is each checkout in turn, for tests that start servers of their own."""

    @pytest.fixture(**IN_TURN)
    def checkout(request: pytest.FixtureRequest) -> Checkout:
        return runnable(request.param, proof)

    return checkout


@pytest.fixture(scope="session")
def comfy_options() -> ServerOptions:
    return ServerOptions()


@pytest.fixture(**IN_TURN)
def comfy(request: pytest.FixtureRequest, comfy_options: ServerOptions) -> Iterator[ComfyServer]:
    """A running server."""
    proof = "that the nodes run, cancel, preview and cache, and that the workflows load"
    with ComfyServer(runnable(request.param, proof), comfy_options) as server:
        yield server


@pytest.fixture
def comfy_client(comfy: ComfyServer) -> Iterator[Client]:
    try:
        from dev.comfyui.client import Client
    except ModuleNotFoundError as error:
        unavailable(f"the test requirement {error.name} is not installed")
    with Client(comfy) as client:
        yield client


@pytest.fixture(scope="session")
def comfy_browser() -> Iterator[Browser]:
    try:
        from dev.comfyui.browser import Browser, chromium_path
    except ModuleNotFoundError as error:
        unavailable(f"workflows in the browser; {error.name} is not installed")
    if chromium_path() is None:
        unavailable("workflows in the browser; no chromium on PATH")
    with Browser() as browser:
        yield browser


@pytest.fixture
def comfy_page(comfy: ComfyServer, comfy_browser: Browser) -> Iterator[ComfyPage]:
    """A fresh browser session on the server's front end."""
    with comfy_browser.open(comfy) as page:
        yield page


def report_missing_comfyui(terminalreporter: Any) -> None:
    """Print a loud line if tests were skipped because no ComfyUI could be run, and one for versions left out."""
    ran = [report.nodeid for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    if any(checkout and f"[{checkout.id}" in test for test in ran for checkout in CHECKOUTS):
        for checkout in left_out():
            line = f"ComfyUI {checkout.id} WAS LEFT OUT: run it before a release, with {ALL_VARIABLE}=1"
            terminalreporter.write_line(line, yellow=True, bold=True)
    skipped = [
        str(report.longrepr[2])
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and NOT_PROVEN in str(report.longrepr[2])
    ]
    if skipped:
        reasons = "; ".join(sorted({reason.split(f"{NOT_PROVEN}: ", 1)[1] for reason in skipped}))
        line = f"WARNING: {len(skipped)} ComfyUI tests skipped, {NOT_PROVEN}: {reasons}"
        terminalreporter.write_line(line, red=True, bold=True)
