"""The nodes in a real ComfyUI that finds an NPU: ComfyUI's own memory manager moves the parts to it and back."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from golden_graphs import golden_run

from dev.comfyui.client import Client
from dev.comfyui.graphs import array, chain, generation, loader, save
from dev.comfyui.probe import device_bytes
from dev.comfyui.server import ComfyServer
from dev.soak import NPU_MIB


@pytest.fixture
def client(on_npu: ComfyServer) -> Iterator[Client]:
    with Client(on_npu) as client:
        yield client


def test_comfyui_finds_the_card(on_npu):
    log = on_npu.log_text()
    assert "Total VRAM 65536 MB" in log
    assert re.search(r"^Device: npu", log, re.MULTILINE), log


@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_images_are_the_originals(on_npu, client, case):
    graph, expected = golden_run(case, on_npu.input)
    result = client.run(graph)
    assert result.ok, result.error_text
    assert device_bytes(on_npu) > 0, "it ran on the card"
    (image,) = result.images
    assert np.abs(array(image) - array(expected)).max() <= 1


def test_captured_steps_make_the_same_images(client):
    graph = chain(seed=8)
    eager = client.run(graph)
    graph["loader"] = loader(capture_graph=True)
    captured = client.run(graph)
    assert captured.ok and "edit" in captured.executed
    for node in ("generated", "edited"):
        assert np.array_equal(array(captured.images_of(node)[0]), array(eager.images_of(node)[0]))


def test_with_float16_the_vae_is_in_float32(on_npu, client):
    """ComfyUI takes every NPU to be capable of bfloat16, also those for which the model is in float16."""
    graph = chain(seed=8)
    graph["loader"] = loader(dtype="float16")
    before = len(on_npu.log_text())
    assert client.run(graph).ok
    assert re.search(r"VAE load device: npu.* dtype: torch.float32", on_npu.log_text()[before:])


def test_previews_and_cancel(client):
    job = client.start(
        {"loader": loader(), "make": generation(steps=60, width=128, height=128), "saved": save("make")}
    )
    job.wait_until(lambda result: len(result.previews) > 2)
    job.interrupt()
    assert job.wait().status == "interrupted"
    assert client.run(chain(seed=9)).ok


def test_the_card_is_given_back(on_npu, client):
    assert client.run(chain(seed=10)).ok
    before = device_bytes(on_npu)
    on_npu.free()
    deadline = time.monotonic() + 20  # the worker thread does it when it next looks at its queue
    while device_bytes(on_npu) >= before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert device_bytes(on_npu) < before


def test_a_card_that_is_too_small_for_a_size_says_which_size_fits(start):
    with start(simulated_npu=8) as small, Client(small) as client:
        graph = {"loader": loader(), "make": generation(width=384, height=256, steps=1), "saved": save("make")}
        failed = client.run(graph)
        assert not failed.ok
        assert "Out of memory on npu:0 in the vae (384 x 256 pixels)" in failed.error_text
        advice = re.search(r"choose a smaller size \(about (\d+) x (\d+) would fit\)", failed.error_text)
        assert advice is not None, failed.error_text
        width, height = map(int, advice.groups())
        assert 256 > width > height, "of the same shape"
        graph["make"] = generation(width=width, height=height, steps=1)
        result = client.run(graph)
        assert result.ok, "the server goes on, and that size does fit"
        assert result.images[0].size == (width, height)


@pytest.mark.parametrize("mode", ["--lowvram", "--novram"])
def test_modes_for_small_cards_make_the_same_image(start, client, mode):
    graph = {"loader": loader(), "make": generation(seed=12), "saved": save("make")}
    expected = array(client.run(graph).images[0])
    with start(simulated_npu=NPU_MIB, args=[mode]) as server, Client(server) as other:
        result = other.run(graph)
        assert result.ok, result.error_text
        # The VLM runs on the CPU there, and rounds in its own way.
        assert np.abs(array(result.images[0]) - expected).max() <= 1
        assert mode.strip("-").upper().replace("VRAM", "_VRAM") in server.log_text()
