"""The nodes in a real ComfyUI that finds an NPU: ComfyUI's own memory manager moves the parts to it and back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from comfyui_fixtures import CHECKOUTS
from golden_graphs import golden_run

from dev.comfyui.client import Client
from dev.comfyui.graphs import array, chain, generation, loader, save
from dev.comfyui.server import ComfyServer, ServerOptions


@pytest.fixture(scope="module", params=CHECKOUTS, ids=[c.id if c else "none" for c in CHECKOUTS])
def start(request, comfy_options) -> Callable[..., ComfyServer]:
    """Starts a server on a card of so many MiB, with more of ComfyUI's arguments."""
    checkout = request.param
    if checkout is None or checkout.problem:
        pytest.skip("NOT PROVEN: that the nodes run in a ComfyUI on an NPU; no ComfyUI was found that runs")
    return lambda mebibytes, *args: ComfyServer(
        checkout, ServerOptions(prepare=comfy_options.prepare, simulated_npu=mebibytes, args=args)
    )


@pytest.fixture(scope="module")
def server(start) -> Iterator[ComfyServer]:
    with start(64 * 1024) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server) as client:
        yield client


def used(server: ComfyServer) -> int:
    """Bytes of the card that are in use."""
    (device,) = server.get("/system_stats").json()["devices"]
    return device["vram_total"] - device["vram_free"]


def test_comfyui_finds_the_card(server):
    log = server.log_text()
    assert "Total VRAM 65536 MB" in log
    assert re.search(r"^Device: npu", log, re.MULTILINE), log


@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_pictures_are_the_originals(server, client, case):
    graph, expected = golden_run(case, server.input)
    result = client.run(graph)
    assert result.ok, result.error_text
    assert used(server) > 0, "it ran on the card"
    (image,) = result.images
    assert np.abs(array(image) - array(expected)).max() <= 1


def test_captured_steps_make_the_same_pictures(client):
    graph = chain(seed=8)
    eager = client.run(graph)
    graph["loader"] = loader(capture_graph=True)
    captured = client.run(graph)
    assert captured.ok and "edit" in captured.executed
    for node in ("generated", "edited"):
        assert np.array_equal(array(captured.images_of(node)[0]), array(eager.images_of(node)[0]))


def test_previews_and_cancel(client):
    job = client.start(
        {"loader": loader(), "make": generation(steps=60, width=128, height=128), "saved": save("make")}
    )
    job.wait_until(lambda result: len(result.previews) > 2)
    job.interrupt()
    assert job.wait().status == "interrupted"
    assert client.run(chain(seed=9)).ok


def test_the_card_is_given_back(server, client):
    assert client.run(chain(seed=10)).ok
    before = used(server)
    server.free()
    deadline = time.monotonic() + 20  # the worker thread does it when it next looks at its queue
    while used(server) >= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert used(server) < before


def test_a_card_that_is_too_small_for_a_size_says_which_size_fits(start):
    with start(8) as small, Client(small) as client:
        graph = {"loader": loader(), "make": generation(width=384, height=384, steps=1), "saved": save("make")}
        failed = client.run(graph)
        assert not failed.ok
        assert "Out of memory on npu:0 in the vae (384 x 384 pixels)" in failed.error_text
        assert "choose a smaller size (about" in failed.error_text
        graph["make"] = generation(width=64, height=64, steps=1)
        assert client.run(graph).ok, "the server goes on"


@pytest.mark.parametrize("mode", ["--lowvram", "--novram"])
def test_modes_for_small_cards_make_the_same_picture(start, client, mode):
    graph = {"loader": loader(), "make": generation(seed=12), "saved": save("make")}
    expected = array(client.run(graph).images[0])
    with start(64 * 1024, mode) as server, Client(server) as other:
        result = other.run(graph)
        assert result.ok, result.error_text
        # The VLM runs on the CPU there, and rounds in its own way.
        assert np.abs(array(result.images[0]) - expected).max() <= 1
        assert mode.strip("-").upper().replace("VRAM", "_VRAM") in server.log_text()
