"""How many workers there are, and what each asks for, by what nodes have."""

from __future__ import annotations

import json

import pytest
from golden import TINY

from deepgen_npu import npu_setup
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.errors import UsageError
from deepgen_npu.tools.batch.cards import VISIBLE
from deepgen_npu.tools.batch.resources import (
    ClusterSettings,
    actor_options,
    address_of,
    first_kind,
    own_node,
    room,
    workers_of,
)


WORKER = {"device": "npu", "text_encoder_device": None, "offload": False, "model": str(TINY)}
BYTES = Checkpoint.open(TINY).nbytes()


def nodes(*resources: dict[str, float], alive: bool = True) -> list:
    return [{"Alive": alive, "Resources": one} for one in resources]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RAY_ADDRESS", "OMP_NUM_THREADS", *VISIBLE.values()):
        monkeypatch.delenv(name, raising=False)


def test_workers_are_counted_node_by_node():
    have = [*nodes({"NPU": 3, "CPU": 1}, {"NPU": 8}, {"CPU": 99}), *nodes({"NPU": 8}, alive=False)]
    assert room(have, {"NPU": 2}) == 1 + 4
    assert room(have, {"NPU": 1, "CPU": 1}) == 1
    assert room(have, {"NPU": 0.1}) == 30 + 80


@pytest.mark.parametrize(
    ("kind", "worker", "resources", "asked"),
    [
        ("npu", {}, None, {"NPU": 1}),
        ("npu", {"text_encoder_device": "npu:1"}, None, {"NPU": 2}),
        ("npu", {"text_encoder_device": "cpu"}, None, {"NPU": 1}),
        ("cuda", {"device": "cuda", "text_encoder_device": "cuda:1"}, None, {"GPU": 2}),
        ("npu", {}, {"GPU": 1.0, "unused": 0.0}, {"GPU": 1}),
        ("cpu", {}, {"CPU": 4.0, "memory": 1e9}, {"CPU": 4, "memory": 1e9}),
    ],
)
def test_what_a_worker_asks_for(kind, worker, resources, asked):
    have = nodes({"NPU": 8, "GPU": 8, "CPU": 8, "memory": 8e9})
    found, count = workers_of(have, ClusterSettings(None, None, kind, resources), kind, {**WORKER, **worker})
    assert found == asked and count == min(8 // amount for name, amount in asked.items() if name != "memory")


def test_a_cpu_is_one_device_with_all_its_threads(monkeypatch):
    settings = ClusterSettings(2, None, "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert workers_of(nodes({"CPU": 8}), settings, "cpu", WORKER) == ({"CPU": 4}, 2)
    assert own_node(settings, WORKER)["num_cpus"] >= 8


def test_a_model_in_main_memory_has_room_for_itself(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = ClusterSettings(None, None, "cpu")
    small = nodes({"CPU": 8, "memory": 2.5 * BYTES})
    assert workers_of(small, settings, "cpu", WORKER) == ({"CPU": 1, "memory": BYTES}, 2)
    assert workers_of(nodes({"CPU": 8, "memory": 1}), settings, "cpu", WORKER) == ({"CPU": 1}, 1)
    offloaded = {**WORKER, "offload": True}
    have = nodes({"NPU": 8, "memory": 3.5 * BYTES})
    assert workers_of(have, ClusterSettings(None, None, "npu"), "npu", offloaded)[1] == 3
    assert workers_of(have, ClusterSettings(8, None, "npu"), "npu", offloaded) == ({"NPU": 1}, 8)


def test_a_cluster_without_room_is_refused_with_the_command():
    with pytest.raises(UsageError) as refused:
        workers_of(nodes({"CPU": 8, "GPU": 4}), ClusterSettings(None, "head:1", "npu"), "npu", WORKER)
    assert str(refused.value) == (
        'the cluster must have room for 1 worker of {"NPU": 1.0}, got 0 NPU. Start its nodes with the number that '
        "they have:\n    ray start --address HOST:PORT --disable-usage-stats --resources '{\"NPU\": 8}'"
    )
    with pytest.raises(UsageError, match=r"room for 3 workers of .*, got 4 GPU\. Choose fewer --workers, or other"):
        workers_of(nodes({"GPU": 4}), ClusterSettings(3, None, "cuda", {"GPU": 2}), "cuda", WORKER)


@pytest.mark.parametrize(("kind", "resources"), [("npu", {"CPU": 4.0}), ("cuda", {"NPU": 1.0}), ("npu", {"NPU": 0.0})])
def test_resources_without_a_card_are_refused(kind, resources):
    with pytest.raises(UsageError, match=rf"--worker_resources must name .* for --device {kind}, by which alone"):
        workers_of(nodes({"NPU": 8, "GPU": 8, "CPU": 8}), ClusterSettings(1, None, kind, resources), kind, WORKER)


def test_the_device_that_a_cluster_has():
    assert first_kind(nodes({"CPU": 8, "GPU": 4}, {"NPU": 2})) == "npu"
    assert first_kind(nodes({"CPU": 8, "GPU": 4, "NPU": 0})) == "cuda"
    assert first_kind([*nodes({"CPU": 8}), *nodes({"NPU": 8}, alive=False)]) == "cpu"


def test_a_node_of_our_own_has_the_cards_that_are_visible(monkeypatch):
    settings = ClusterSettings(None, None, "npu")
    monkeypatch.setattr(npu_setup, "cards", lambda: ["/dev/davinci0", "/dev/davinci1", "/dev/davinci2"])
    assert own_node(settings, WORKER)["resources"] == {"NPU": 3}
    monkeypatch.setenv(VISIBLE["npu"], "2,5")
    assert own_node(settings, WORKER)["resources"] == {"NPU": 2}
    assert own_node(ClusterSettings(2, None, "cuda"), WORKER)["resources"] == {}
    named = ClusterSettings(2, None, "npu", {"NPU": 1.0, "fast": 0.5})
    assert own_node(named, WORKER)["resources"] == {"NPU": 2, "fast": 1}
    json.dumps(own_node(settings, WORKER))


def test_what_ray_is_told_of_a_worker():
    assert actor_options({"NPU": 1.0}) == {
        "num_cpus": 0, "num_gpus": 0, "resources": {"NPU": 1.0}, "max_concurrency": 2, "max_restarts": 0,
        "max_task_retries": 0,
    }  # fmt: skip
    more = actor_options({"GPU": 1.0, "CPU": 2.0, "memory": 5.0, "fast": 0.5})
    assert (more["num_cpus"], more["num_gpus"], more["memory"], more["resources"]) == (2.0, 1.0, 5.0, {"fast": 0.5})


def test_the_address_of_a_cluster(monkeypatch):
    assert address_of(ClusterSettings(1, None, "npu")) is None
    assert address_of(ClusterSettings(1, "auto", "npu")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address_of(ClusterSettings(1, None, "npu")) == "head:6379"
    assert address_of(ClusterSettings(1, "local", "npu")) is None
    with pytest.raises(UsageError, match=r"--address must be HOST:PORT of the head"):
        address_of(ClusterSettings(1, "ray://head:10001", "npu"))
