"""Values over wires in a running ComfyUI: what a user sees of those that are refused. `test_inputs` has the many."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawn_inputs import Description, latent, plain, tensor

from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, array, core, edit, generation, loader, modular, save
from dev.comfyui.result import RunResult


def wired(graph: Graph, node: str, name: str, value: Description) -> Graph:
    """The graph with a value that comes to an input over a wire."""
    inputs = {**graph[node]["inputs"], name: ["value", 0]}
    source = {"class_type": "ProbeValue", "inputs": {"description": json.dumps(value)}}
    return {**graph, "value": source, node: {**graph[node], "inputs": inputs}}


def graph_of(node: str) -> Graph:
    """The node is "loader", "make", "edit", "encode" or "sample"."""
    if node in ("encode", "sample"):
        return modular()
    graph = {"loader": loader(), "make": generation(steps=1), "saved": save("make")}
    if node == "edit":
        graph |= {"edit": edit("source", steps=1), "saved": save("edit")}
        graph |= {"source": core("EmptyImage", width=64, height=64, batch_size=1, color=255)}
        del graph["make"]
    return graph


def run(client: Client, node: str, name: str, value: Description) -> RunResult:
    return client.run(wired(graph_of(node), node, name, value))


NAN = {"kind": "number", "value": "nan", "type": "float"}
WRONG = [
    ("loader", "model", plain(["tiny"])),
    ("loader", "dtype", plain(None)),
    ("loader", "capture_graph", plain(1)),
    ("make", "width", plain(8208)),
    ("make", "steps", NAN),
    ("make", "cfg", plain("4")),
    ("make", "seed", plain(None)),
    ("make", "prompt", plain(7)),
    ("edit", "image", tensor([64, 64, 3])),
    ("edit", "image", tensor([1, 64, 64, 3], fill="nan", at=5)),
    ("edit", "size_mode", plain("as it comes")),
    ("encode", "pipeline", plain("a pipeline")),
    ("encode", "image_2", tensor([2, 64, 64, 3])),
    ("sample", "conditioning", plain([[1, {}]])),
    ("sample", "denoise", plain(-1.0)),
    ("sample", "latent_image", latent(tensor([1, 16, 1, 8, 8]))),
    ("sample", "latent_image", latent(tensor([1, 16, 8, 8]), batch_index=plain([10**9]))),
]


@pytest.mark.parametrize(("node", "name", "value"), WRONG, ids=lambda part: part if isinstance(part, str) else "")
def test_a_wrong_value_is_the_error_of_its_node(probed_client, node, name, value):
    result = run(probed_client, node, name, value)
    assert result.error is not None and result.error["node_id"] == node, result.error_text
    assert result.error["exception_type"] in ("ValueError", "TypeError")
    assert result.error["exception_message"].startswith((f"{name} ", f"{name}:"))


def test_right_values_over_wires_give_the_same_image(probed_client):
    plain_result = probed_client.run(graph_of("make"))
    assert plain_result.ok, plain_result.error_text
    graph = wired(graph_of("make"), "make", "width", plain(64.0))
    wired_result = probed_client.run(graph)
    assert wired_result.ok, wired_result.error_text
    first, second = (array(result.images[0]) for result in (plain_result, wired_result))
    assert np.array_equal(first, second)


def test_nan_that_is_typed_in(probed_client):
    """ComfyUI's own limits let it pass."""
    graph = graph_of("make")
    graph["make"]["inputs"]["cfg"] = float("nan")
    result = probed_client.run(graph)
    assert "cfg must be a number from 0 to 30, got nan." in result.error_text


def test_an_input_that_is_not_there(probed_client):
    result = run(probed_client, "edit", "image_9", tensor([1, 64, 64, 3]))
    assert "image_9 is not an input of DeepGen Edit Image: connect one of pipeline, image, " in result.error_text
