"""The cancel button acts within a layer, also in the parts that run once and long, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, edit, generation, load_image, loader, save
from dev.comfyui.probe import VAE_DECODER, VISION_LAYER, VLM_LAYER, Probe


LAYERS = 35
"""Of the VLM that run: the last one's output is not used."""
RESNET = "ResnetBlock2D.conv1"
SLOW = 0.1
"""Seconds a layer: encoding then takes 3.5, and a request to the server no more than a few layers."""


def image(client: Client, graph: Graph) -> np.ndarray:
    result = client.run(graph)
    assert result.ok, result.error_text
    return np.asarray(result.images[0])


def layers_of_a_cancelled_run(client: Client, probe: Probe, graph: Graph, layer: str, seconds: float) -> int:
    """How many of these slow layers ran when it was cancelled at the third."""
    probe.slow_down(**{layer: seconds})
    probe.new_calls()
    job = client.start(graph)
    probe.wait_for(layer, 3)
    job.interrupt()
    assert job.wait().status == "interrupted"
    probe.slow_down()
    (ran,) = probe.new_calls(layer)
    return ran


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_cancel_while_the_vlm_runs(probed_client, probe, with_image):
    graph = {"loader": loader(), "make": generation(seed=3), "saved": save("make")}
    if with_image:
        graph |= {"image": load_image("example.png"), "make": edit("image", seed=3)}
    whole = image(probed_client, graph)
    probe.free()
    probe.new_calls(VLM_LAYER)
    assert 3 <= layers_of_a_cancelled_run(probed_client, probe, graph, VLM_LAYER, SLOW) < LAYERS / 2
    assert np.array_equal(image(probed_client, graph), whole)
    vlm, vision = probe.new_calls(VLM_LAYER, VISION_LAYER)
    assert vlm == LAYERS, "nothing of the cancelled pass is kept"
    # The image was seen before the cancelled pass, and is not looked at again.
    assert vision == 0


def test_cancel_while_the_vae_decodes(probed_client, probe):
    graph = {"loader": loader(), "make": generation(seed=4), "saved": save("make")}
    whole = image(probed_client, graph)
    (layers,) = probe.new_calls(RESNET)
    probe.free()
    assert 3 <= layers_of_a_cancelled_run(probed_client, probe, graph, RESNET, 5 * SLOW) < layers / 2
    assert np.array_equal(image(probed_client, graph), whole)


def test_what_is_known_is_not_encoded_again(probed_client, probe):
    probe.free()
    graph = {"loader": loader(), "image": load_image("example.png"), "make": edit("image"), "saved": save("make")}
    ran = []
    for changes in ({}, {"seed": 5}, {"prompt": "make it green"}):
        graph["make"] = edit("image", **changes)
        image(probed_client, graph)
        ran.append(probe.new_calls(VLM_LAYER, VISION_LAYER, VAE_DECODER))
    first, same_prompt, other_prompt = ran
    assert first[0] == other_prompt[0] == LAYERS and first[1] > 0
    assert same_prompt == [0, 0, 1]
    assert other_prompt[1:] == [0, 1], "the image was seen before"
