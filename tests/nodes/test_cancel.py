"""The cancel button acts within a layer, also in the parts that run once and long, and leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from comfyui_bench.client import Client
from comfyui_bench.fixtures import CHECKOUTS
from comfyui_bench.probe import PACKS, VAE_DECODER, VISION_LAYER, VLM_LAYER, Probe
from comfyui_bench.server import ComfyServer, ServerOptions
from graphs import Graph, edit, generation, load_image, loader, save


LAYERS = 35
"""Of the VLM that run: the last one's output is not used."""
SLOW = 0.1
SOON = 1.0
"""Seconds. Encoding takes 3.5 with slow layers, decoding 4."""
RESNET = "ResnetBlock2D.conv1"


@pytest.fixture(scope="module", params=CHECKOUTS, ids=[c.id if c else "none" for c in CHECKOUTS])
def server(request, comfy_options) -> Iterator[ComfyServer]:
    checkout = request.param
    if checkout is None or checkout.problem:
        pytest.skip("NOT PROVEN: that long parts can be cancelled; no ComfyUI was found that runs")
    with ComfyServer(checkout, ServerOptions(packs=PACKS, prepare=comfy_options.prepare)) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest.fixture
def probe(server) -> Iterator[Probe]:
    probe = Probe(server)
    yield probe
    probe.slow_down()


def picture(client: Client, graph: Graph) -> np.ndarray:
    result = client.run(graph)
    assert result.ok, result.error_text
    return np.asarray(result.images[0])


def seconds_to_cancel(client: Client, probe: Probe, graph: Graph, layer: str, **slow: float) -> float:
    """Cancel at the third call of a layer."""
    probe.slow_down(**slow)
    probe.new_calls()
    job = client.start(graph)
    probe.wait_for(layer, 3)
    asked = time.monotonic()
    job.interrupt()
    assert job.wait().status == "interrupted"
    probe.slow_down()
    return time.monotonic() - asked


@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
def test_cancel_while_the_vlm_runs(server, client, probe, with_picture):
    graph = {"loader": loader(), "make": generation(seed=3), "saved": save("make")}
    if with_picture:
        graph |= {"picture": load_image("example.png"), "make": edit("picture", seed=3)}
    whole = picture(client, graph)
    server.free()
    probe.new_calls(VLM_LAYER)
    assert seconds_to_cancel(client, probe, graph, VLM_LAYER, **{VLM_LAYER: SLOW}) < SOON
    (ran,) = probe.new_calls(VLM_LAYER)
    assert 3 <= ran < LAYERS / 2
    assert np.array_equal(picture(client, graph), whole)
    vlm, vision = probe.new_calls(VLM_LAYER, VISION_LAYER)
    assert vlm == LAYERS, "nothing of the cancelled pass is kept"
    # The picture was seen before the cancelled pass, and is not looked at again.
    assert vision == 0


def test_cancel_while_the_vae_decodes(server, client, probe):
    graph = {"loader": loader(), "make": generation(seed=4), "saved": save("make")}
    whole = picture(client, graph)
    server.free()
    assert seconds_to_cancel(client, probe, graph, RESNET, **{RESNET: 3 * SLOW}) < SOON
    assert np.array_equal(picture(client, graph), whole)


def test_what_is_known_is_not_encoded_again(server, client, probe):
    server.free()
    graph = {"loader": loader(), "picture": load_image("example.png"), "make": edit("picture"), "saved": save("make")}
    ran = []
    for changes in ({}, {"seed": 5}, {"prompt": "make it green"}):
        graph["make"] = edit("picture", **changes)
        picture(client, graph)
        ran.append(probe.new_calls(VLM_LAYER, VISION_LAYER, VAE_DECODER))
    first, same_prompt, other_prompt = ran
    assert first[0] == other_prompt[0] == LAYERS and first[1] > 0
    assert same_prompt == [0, 0, 1]
    assert other_prompt[1:] == [0, 1], "the picture was seen before"
