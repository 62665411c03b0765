"""One server with the probe for all tests that look on: a start takes ten seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_fixtures import CHECKOUTS, unavailable

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.client import Client
from dev.comfyui.larger import LARGER, NAME
from dev.comfyui.probe import PACKS, Probe
from dev.comfyui.server import ComfyServer, ServerOptions
from dev.soak import prepare as lay_out_small_models


@pytest.fixture(scope="session", params=CHECKOUTS, ids=[c.id if c else "none" for c in CHECKOUTS])
def probed(request: pytest.FixtureRequest, comfy_options: ServerOptions) -> Iterator[ComfyServer]:
    """A server with the probe, the models of all tests, those of the soak and a larger one."""
    checkout = request.param
    if checkout is None or checkout.problem:
        unavailable("that parts can be cancelled and memory is given back; no ComfyUI was found that runs")

    def lay_out(base: Path) -> None:
        if comfy_options.prepare:
            comfy_options.prepare(base)
        lay_out_small_models(base)
        write(base / "models" / "deepgen" / NAME, LARGER)

    with ComfyServer(checkout, ServerOptions(packs=PACKS, prepare=lay_out)) as server:
        yield server


@pytest.fixture
def probed_client(probed: ComfyServer) -> Iterator[Client]:
    with Client(probed) as client:
        yield client


@pytest.fixture
def probe(probed: ComfyServer) -> Iterator[Probe]:
    """Nothing is slow after the test."""
    probe = Probe(probed)
    yield probe
    probe.slow_down()
