"""After a model whose VAE cannot be read the next prompt, on any model, runs.

From some version after 0.8 on, ComfyUI's executor asks outputs for their ``patcher`` outside of any node. An error
there ends the thread that runs prompts: the server goes on accepting them and never runs one again.
"""

from __future__ import annotations

import pytest
from golden import TINY

from deepgen_npu.checkpoint.folder import Checkpoint
from dev.comfyui.client import Client
from dev.comfyui.graphs import Graph, core, decoding, generation, load_image, loader, save
from dev.comfyui.probe import Probe
from dev.comfyui.result import RunResult


VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def client(probed_client: Client, probe: Probe) -> Client:
    """Nothing was read yet, and all that fails is that test's."""
    probe.free()
    return probed_client


def loading_only(model: str) -> Graph:
    """The loader's output is used by a node that reads no weights."""
    return {"loader": loader(model), "shown": core("PreviewAny", source=["loader", 0])}


def decoding_with(model: str, seed: int = 0) -> Graph:
    return {
        "loader": loader(model),
        "latent": core("EmptySD3LatentImage", width=64, height=64, batch_size=1 + seed),
        "decode": decoding("latent"),
        "saved": save("decode"),
    }


def making_with(model: str, seed: int) -> Graph:
    return {"loader": loader(model), "make": generation(seed=seed, steps=1), "saved": save("make")}


def runs(client: Client, graph: Graph) -> RunResult:
    result = client.run(graph, timeout=60)
    assert result.ok, result.error_text
    return result


def test_a_cached_loader_whose_vae_is_linked_next(client, probe):
    probe.break_disk(f"failing/{VAE_FILE}")
    runs(client, loading_only("failing"))
    result = client.run(decoding_with("failing"), timeout=60)
    assert result.status == "error" and result.error["node_id"] == "decode", "the node that decodes has the error"
    assert VAE_FILE in result.error_text
    runs(client, making_with("good", 1))
    probe.break_disk()
    runs(client, decoding_with("failing"))


def test_a_stale_loader_while_another_model_runs(client, probe):
    probe.break_disk(f"failing/{VAE_FILE}")
    runs(client, loading_only("failing"))
    for seed in (2, 3):
        runs(client, making_with("good", seed))
    result = client.run(making_with("failing", 2), timeout=60)
    assert result.status == "error" and result.error["node_id"] == "make"
    runs(client, making_with("good", 4))


def test_a_renamed_tensor(client, probe):
    """Any of these nodes may refuse it; the queue goes on."""
    for graph in (loading_only("renamed"), decoding_with("renamed"), making_with("renamed", 5)):
        result = client.run(graph, timeout=60)
        assert result.ok or "decoder.conv_in.bi" in result.error_text
        runs(client, making_with("good", 6))


def test_a_vae_is_read_in_the_node_that_needs_it(client, probe):
    """With its progress bar; and not when a loader is only cached, or stale."""
    nbytes = Checkpoint.open(TINY).nbytes("vae")

    def who_read(result: RunResult) -> set[str]:
        return {one.node for one in result.progress if one.max == nbytes}

    assert who_read(runs(client, loading_only("good"))) == set()
    assert who_read(runs(client, decoding_with("good", 1))) == {"decode"}
    assert who_read(runs(client, decoding_with("good", 2))) == set(), "it was read before"
    graph = {
        "loader": loader("good"),
        "image": load_image("example.png"),
        "encode": core("VAEEncode", pixels=["image", 0], vae=["loader", 1]),
        "decode": decoding("encode"),
        "saved": save("decode"),
    }
    probe.free()
    assert who_read(runs(client, graph)) <= {"encode"}


@pytest.mark.parametrize("tile_size", [512, 64])
def test_core_nodes_refuse_what_the_vae_cannot_take(client, tile_size):
    graph = decoding_with("good")
    graph["latent"] = core("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph["decode"] = core(
        "VAEDecodeTiled",
        samples=["latent", 0],
        vae=["loader", 1],
        tile_size=tile_size,
        overlap=0,
        temporal_size=64,
        temporal_overlap=8,
    )
    result = client.run(graph, timeout=60)
    assert result.status == "error" and result.error["node_id"] == "decode"
    shape = "samples must have the shape [batch, 16, height, width], as VAE Encode makes it, got [1, 4, 8, 8]."
    assert shape in result.error_text
