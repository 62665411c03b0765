"""In a real ComfyUI on a card: one sampling for all nodes, and weights that stream, whoever's memory manager it has.

COMFYUI_PATH and COMFYUI_PYTHON name a ComfyUI whose PyTorch has the card. On NVIDIA cards newer versions bring weights
over by dynamic VRAM, which no simulation has. In a run on the simulated NPU the server has one of its own.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

from deepgen_npu.tools.random_checkpoint import write
from dev.comfyui.checkouts import Checkout, find_checkouts
from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, array, core, decoding, encoding, generation, ksampler, loader, save
from dev.comfyui.larger import STREAMED
from dev.comfyui.server import ComfyServer, ServerOptions


NAME = "streamed"
MODES = {"resident": (), "novram": ("--novram",), "without dynamic VRAM": ("--disable-dynamic-vram",)}


def graph_of(seed: int = 3) -> Graph:
    settings = {"prompt": "a red circle", "width": 128, "height": 128}
    return {
        "loader": loader(NAME, "bfloat16"),
        "make": generation(seed=seed, **settings),
        "made": save("make"),
        "encode": encoding(**settings),
        "sample": ksampler(seed=seed),
        "decode": decoding("sample"),
        "saved": save("decode"),
        # The base must be the same after a patched run.
        "shifted": core("ModelSamplingSD3", model=["loader", 2], shift=6.0),
        "other": ksampler(seed=seed, model=["shifted", 0]),
        "other_decoded": decoding("other"),
        "other_saved": save("other_decoded"),
    }


def _options_of(checkout: Checkout) -> str:
    return (checkout.path / "comfy" / "cli_args.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def images(device) -> dict[str, list[np.ndarray]]:
    """The images of Generate, KSampler and a patched KSampler in each mode of memory."""
    found = {}
    checkouts = [one for one in find_checkouts() if not one.problem]
    if not checkouts:
        pytest.fail("no ComfyUI found: set COMFYUI_PATH and COMFYUI_PYTHON")
    newest = checkouts[-1]
    for mode, args in MODES.items():
        if "dynamic" in mode and "--disable-dynamic-vram" not in _options_of(newest):
            continue
        options = ServerOptions(
            args=args,
            prepare=lambda base: write(base / "models" / "deepgen" / NAME, STREAMED),
            on_card=True,
            simulated_npu=64 * 1024 if "dev.npu_simulator.simulated" in sys.modules else 0,
        )
        with ComfyServer(newest, options) as server, Client(server) as client:
            assert f"Device: {device.type}" in server.log_text()
            for _ in range(2):
                result = client.run(graph_of())
                assert result.ok, result.error_text
            found[mode] = [array(result.images_of(node)[0]) for node in ("made", "saved", "other_saved")]
    return found


def test_all_nodes_draw_the_same(images):
    for made, by_ksampler, patched in images.values():
        assert np.array_equal(made, by_ksampler)
        assert not np.array_equal(made, patched)


def test_streaming_changes_nothing(images):
    resident = images["resident"]
    for mode, found in images.items():
        for one, other in zip(resident, found, strict=True):
            assert np.abs(one - other).max() <= 1, mode
