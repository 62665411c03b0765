"""How many workers there are, and what each of them asks Ray for. Nothing here needs torch or Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ... import npu_setup
from ...checkpoint.folder import Checkpoint, resolve_model
from ...checks import Named, must, must_be
from ...errors import UsageError
from ...formatting import command, counted
from .cards import CPU, CUDA, NPU, RESOURCE, cards_of_a_worker, visible_ids
from .pool import IN_FLIGHT


AUTO = "auto"

OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster of our own. Images never travel through it; by default it would be a third of the main memory."""


@dataclass(frozen=True)
class ClusterSettings:
    """How many workers there are, and where.

    Attributes:
        workers: Their number; None for as many as the cluster has room for.
        address: Of a running cluster, ``HOST:PORT`` or ``auto``; None for that of RAY_ADDRESS, or to start one here.
        kind: Of their devices: ``npu``, ``cuda``, ``cpu``, or ``auto`` for the first of these that the cluster has.
        resources: What each asks Ray for; None for the usual of its kind.
        attempts: How often a row is tried whose worker died.
    """

    workers: int | None
    address: str | None
    kind: str
    resources: Mapping[str, float] | None = None
    attempts: int = 3


def address_of(settings: ClusterSettings) -> str | None:
    """Of a running cluster; None to start one here.

    Raises:
        UsageError: For a protocol that cannot do this.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and "://" in address:
        raise UsageError(must_be("--address", "HOST:PORT of the head of a cluster, or auto", address))
    return None if address == "local" else address


def own_node(settings: ClusterSettings, worker: Mapping[str, Any]) -> dict[str, Any]:
    """What a cluster of our own has: this machine."""
    asked = usual_resources(settings, settings.kind, worker)
    cards: dict[str, float] = {}
    if settings.kind in (NPU, AUTO):
        # Ray looks for one kind of card alone, whichever comes first.
        visible = visible_ids(NPU, os.environ)
        count = len(npu_setup.cards() if visible is None else visible)
        cards = {RESOURCE[NPU]: float(count)} if count else {}
    # Whoever asks for more workers than there are cores gets them.
    workers = settings.workers or int(sum(cards.values())) or 1
    return {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_cpus": max(1, os.cpu_count() or 1, round(workers * asked.get("CPU", 0))),
        # By default it starts an idle process for each of them.
        "_system_config": {"prestart_worker_first_driver": False},
        "resources": {**cards, **_custom(asked, workers)},
    }


def _custom(asked: Mapping[str, float], workers: int) -> dict[str, float]:
    """Resources that only have a name: on a machine of our own there is enough of them."""
    known = {*RESOURCE.values(), "memory"}
    return {name: amount * workers for name, amount in asked.items() if name not in known}


def first_kind(nodes: list[dict[str, Any]]) -> str:
    """The kind of device that a cluster has."""
    have = {name for node in nodes if node["Alive"] for name, amount in node["Resources"].items() if amount > 0}
    return next((kind for kind in (NPU, CUDA) if RESOURCE[kind] in have), CPU)


def usual_resources(settings: ClusterSettings, kind: str, worker: Mapping[str, Any]) -> dict[str, float]:
    """What a worker asks Ray for.

    Raises:
        UsageError: When it would not get a card of its own.
    """
    if settings.resources is None:
        if kind not in (NPU, CUDA):
            return {RESOURCE[CPU]: float(threads())}
        devices = [worker.get("device"), worker.get("text_encoder_device")]
        return {RESOURCE[kind]: float(cards_of_a_worker(kind, devices))}
    asked = {name: amount for name, amount in settings.resources.items() if amount > 0}
    cards = [RESOURCE[NPU], RESOURCE[CUDA]] if kind == NPU else [RESOURCE[CUDA]]
    if kind in (NPU, CUDA) and not any(name in asked for name in cards):
        requirement = f"name {' or '.join(cards)} for --device {kind}, by which alone Ray gives each worker its card"
        raise UsageError(must("--worker_resources", requirement, dict(settings.resources)))
    return asked or {RESOURCE[CPU]: 1.0}


def threads() -> int:
    """How many threads a CPU computes with here: as a device it is all of them."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(
    nodes: list[dict[str, Any]], settings: ClusterSettings, kind: str, worker: Mapping[str, Any]
) -> tuple[dict[str, float], int]:
    """What each worker asks for, and how many there are.

    Args:
        nodes: As of ``ray.nodes()``.
        settings: Of the cluster.
        kind: Of device.
        worker: Settings of each.

    Raises:
        UsageError: When there is no room for them.
    """
    asked = usual_resources(settings, kind, worker)
    if settings.workers is None and settings.resources is None and (kind == CPU or worker["offload"]):
        # Each keeps a whole model in main memory: no more than fit.
        needed = float(Checkpoint.open(resolve_model(worker["model"])).nbytes())
        if most := room(nodes, {**asked, "memory": needed}):
            return {**asked, "memory": needed}, most
        if room(nodes, asked):
            return asked, 1
    most = room(nodes, asked)
    if most < (settings.workers or 1):
        _no_room(nodes, settings, asked)
    return asked, settings.workers or most


def room(nodes: list[dict[str, Any]], asked: Mapping[str, float]) -> int:
    """For how many workers the nodes have room, whoever else works there."""
    have = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(one.get(name, 0) / amount + 1e-9) for name, amount in asked.items()) for one in have)


def _no_room(nodes: list[dict[str, Any]], settings: ClusterSettings, asked: Mapping[str, float]) -> NoReturn:
    have = {name: sum(node["Resources"].get(name, 0) for node in nodes if node["Alive"]) for name in asked}
    wanted = f"have room for {counted(settings.workers or 1, 'worker')} of {json.dumps(asked)}"
    advice = ""
    if RESOURCE[NPU] in asked:
        # What Ray finds by itself depends on chance where a node has GPUs, too, or declares its NPUs as such.
        end = "" if address_of(settings) else "  # then --address auto"
        start = "--head" if not address_of(settings) else "--address HOST:PORT"
        example = f"ray start {start} --disable-usage-stats --resources '{json.dumps({RESOURCE[NPU]: 8})}'{end}"
        advice = f"Start its nodes with the number that they have:{command(example)}".rstrip()
    elif RESOURCE[CPU] not in asked or settings.workers:
        advice = "Choose fewer --workers, or other --worker_resources."
    shown = Named(", ".join(f"{amount:g} {name}" for name, amount in have.items()))
    raise UsageError(must("the cluster", wanted, shown, advice=advice))


def actor_options(asked: Mapping[str, float]) -> dict[str, Any]:
    """Options of ``ray.remote`` for a worker."""
    named = {name: amount for name, amount in asked.items() if name not in ("CPU", "GPU", "memory")}
    return {
        "num_cpus": asked.get("CPU", 0),
        "num_gpus": asked.get("GPU", 0),
        **({"memory": asked["memory"]} if "memory" in asked else {}),
        "resources": named,
        "max_concurrency": IN_FLIGHT,
        # A dead one is replaced (see `pool`).
        "max_restarts": 0,
        "max_task_retries": 0,
    }
