"""Memory of long sessions in a real ComfyUI: weights are given back, shared, and read once."""

from __future__ import annotations

import numpy as np
import pytest

from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.tools.layout import weight_files
from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, chain, generation, loader, save
from dev.comfyui.larger import LARGER, NAME
from dev.comfyui.probe import device_bytes, wait_until
from dev.comfyui.result import RunResult
from dev.comfyui.server import ComfyServer
from dev.soak import slope, soak, unload


ELEMENTS = sum(file.elements for file in weight_files(LARGER))


def graph_of(model: str = NAME, seed: int = 1, **options) -> Graph:
    return {
        "loader": loader(model, **options),
        "make": generation(seed=seed, steps=1),
        "saved": save("make"),
    }


def bytes_read(server: ComfyServer, result: RunResult, model: str) -> float:
    """Of the weights, by the progress bars of the loader and of who encodes: they go up to their size in the files."""
    checkpoint = Checkpoint.open(server.models / "deepgen" / model)
    parts = ("transformer",), ("vlm", "connector", "vae")
    return sum(
        max((one.value for one in result.progress if one.max == checkpoint.nbytes(*some)), default=0) for some in parts
    )


def test_a_short_soak_leaves_nothing_on_the_device(on_npu):
    unload(on_npu, 0)
    assert device_bytes(on_npu) == 0
    rows = soak(on_npu, 8)
    assert all(row.device > 0 for row in rows), "it ran on the device"
    assert {row.status for row in rows} == {"success", "interrupted"}
    assert rows[-1].device_after == 0, "every byte is given back"
    # Two loaders have two models, a captured step is kept in a graph; a cancelled run may have read but one model.
    other = ("two loaders", "captured")
    plain = [row for row in rows if row.status == "success" and not any(words in row.what for words in other)]
    tensors = [row.tensors for row in plain]
    assert len(tensors) > 3
    assert max(tensors) - min(tensors) < 100, "the models of earlier runs are gone"


def test_weights_leave_main_memory_and_come_back(probed, probed_client, probe):
    """The rest that ComfyUI keeps is that of a server which has run a small model."""
    server, client, weights_mb = probed, probed_client, ELEMENTS * 4 / 2**20
    assert client.run(graph_of("first")).ok
    server.free()
    before = probe.memory()["trimmed_mb"]
    held = []
    for seed in (1, 2):
        result = client.run(graph_of(seed=seed))
        assert result.ok, result.error_text
        held.append(probe.memory()["trimmed_mb"] - before)
        server.free()
        wait_until(lambda: probe.memory()["trimmed_mb"] - before < 0.2 * weights_mb, "main memory", timeout=15)
    assert all(0.9 * weights_mb < mb < 1.2 * weights_mb for mb in held), (held, weights_mb)


def test_loaders_of_one_model_share_what_was_read(probed, probed_client, probe):
    server, client = probed, probed_client
    probe.free()
    first = client.run(graph_of())
    assert bytes_read(server, first, NAME) > 0
    held = probe.memory()["trimmed_mb"]
    graph = graph_of(seed=2)
    graph |= {
        "other": loader(NAME, capture_graph=True),
        "again": generation(pipeline=["other", 0], seed=3),
        "kept": save("again"),
    }
    both = client.run(graph)
    assert {"other", "again"} <= set(both.executed) and bytes_read(server, both, NAME) == 0
    assert probe.memory()["trimmed_mb"] - held < 100, "the weights are there once"
    other_dtype = client.run(graph_of(dtype="bfloat16"))
    assert bytes_read(server, other_dtype, NAME) > 0, "another dtype is another model"


@pytest.mark.parametrize("mode", ["--cache-none", "--cache-lru 10", "--cache-ram 100000"])
def test_other_caches_of_comfyui(start, mode):
    """None keeps no result, LRU some, and RAM drops what it can when fewer GB than given are free."""
    starting = start(args=mode.split())
    if "cache-ram" in mode and starting.checkout.version_tuple < (0, 8):
        pytest.skip("this ComfyUI has no such mode")
    with starting as server, Client(server) as client:
        graph = chain()
        graph["loader"] = loader("first")
        results = [client.run(graph), client.run(graph)]
        assert all(result.ok for result in results), results[-1].error_text
        edited = [np.asarray(image) for result in results for image in result.images_of("edited")]
        assert np.array_equal(edited[0], edited[-1])
        assert ("edit" in results[1].executed) == (mode != "--cache-lru 10")


def test_slope():
    assert slope([3.0, 5.0, 7.0, 9.0]) == pytest.approx(2.0)
    assert slope([1.0, 2.0, 1.0]) == pytest.approx(0.0)
