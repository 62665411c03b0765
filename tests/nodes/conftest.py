"""Servers for all tests of the nodes that look inside: a start takes ten seconds, the first image of each as long."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from comfyui_fixtures import each_comfyui
from golden import TINY

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import Checkout
from dev.comfyui.client import Client
from dev.comfyui.larger import LARGER, NAME
from dev.comfyui.probe import PACKS, Probe
from dev.comfyui.server import ComfyServer, ServerOptions
from dev.soak import NPU_MIB
from dev.soak import prepare as lay_out_small_models


VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
EXTRA_MODELS = ("--extra-model-paths-config", "{base}/extra_model_paths.yaml")

Start = Callable[..., ComfyServer]

checkout = each_comfyui("that runs can be cancelled, memory is given back and wrong values are refused")


@pytest.fixture(scope="session")
def start(checkout: Checkout, comfy_options: ServerOptions) -> Start:
    """Starts a server with the probe, the models of all tests, those of the soak, and damaged ones.

    ``larger`` adds one of half a GB, which takes seconds to write; the other options are those of `ServerOptions`.
    """

    def lay_out(base: Path, larger: bool) -> None:
        if comfy_options.prepare:
            comfy_options.prepare(base)
        lay_out_small_models(base)
        models = base / "models" / "deepgen"
        if larger:
            write(models / NAME, LARGER)
        for name in ("good", "failing", "renamed"):
            shutil.copytree(TINY, models / name)
        weights = models / "renamed" / VAE_FILE
        content = weights.read_bytes()
        assert content.count(b"decoder.conv_in.bias") == 1
        weights.write_bytes(content.replace(b"decoder.conv_in.bias", b"decoder.conv_in.bixs"))

    def start(larger: bool = False, **options: Any) -> ComfyServer:
        prepare = partial(lay_out, larger=larger)
        return ComfyServer(checkout, ServerOptions(packs=PACKS, prepare=prepare, **options))

    return start


@pytest.fixture(scope="session")
def probed(start: Start) -> Iterator[ComfyServer]:
    """A server on the CPU."""
    with start(larger=True, args=EXTRA_MODELS) as server:
        yield server


@pytest.fixture
def probed_client(probed: ComfyServer) -> Iterator[Client]:
    with Client(probed) as client:
        yield client


@pytest.fixture
def probe(probed: ComfyServer) -> Iterator[Probe]:
    """Nothing is slow or broken after the test."""
    probe = Probe(probed)
    yield probe
    probe.slow_down()
    probe.break_disk()


@pytest.fixture(scope="session")
def on_npu(start: Start) -> Iterator[ComfyServer]:
    """A server on a simulated card of 64 GiB."""
    with start(simulated_npu=NPU_MIB) as server:
        yield server
