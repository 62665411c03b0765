"""Which cards a worker of Ray has. Nothing here needs torch: it has to be settled before torch_npu is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence

from ...checks import Named, must, must_be


CPU, CUDA, NPU = "cpu", "cuda", "npu"

VISIBLE = {NPU: "ASCEND_RT_VISIBLE_DEVICES", CUDA: "CUDA_VISIBLE_DEVICES"}
"""What a process reads once, when it first uses a card. CANN takes ids in ascending order alone: otherwise it finds no
card at all, and says nothing."""

RESOURCE = {NPU: "NPU", CUDA: "GPU", CPU: "CPU"}
"""What Ray calls them."""


def visible_ids(kind: str, environment: Mapping[str, str]) -> list[str] | None:
    """The ids that the variable of a kind of card names; None if it is not set.

    Args:
        kind: `NPU` or `CUDA`.
        environment: Of a process.
    """
    text = environment.get(VISIBLE[kind])
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]


def show_own_cards(
    kind: str,
    asked: Mapping[str, float],
    given: Mapping[str, Sequence[object]],
    environment: MutableMapping[str, str],
) -> list[str]:
    """Let this process see exactly the cards that Ray gave it, as ``npu:0`` and so on.

    Ray sets the variable itself, but not where a NOSET variable of its own forbids it, not where NPUs are declared as
    GPUs, and with several ids in any order.

    Args:
        kind: Of the device: `NPU`, `CUDA` or `CPU`.
        asked: Resources that this worker asked for.
        given: Ids of the cards that Ray gave it, by resource: those of the node's variable, or else places.
        environment: Of this process, changed in place.

    Returns:
        The ids of the cards on their node.

    Raises:
        ValueError: When Ray gave it others than it asked for.
    """
    if kind == CPU:
        return []
    resource = RESOURCE[NPU] if kind == NPU and given.get(RESOURCE[NPU]) else RESOURCE[CUDA]
    ids = [str(one) for one in given.get(resource, ())]
    wanted = math.ceil(asked.get(resource, 0))
    if len(ids) != wanted or not ids:
        # Of a node whose variable names fewer cards than it declares, Ray gives each worker all of them.
        advice = f"Declare as many as {VISIBLE[kind]} names on that node."
        found = Named(f"{len(ids)} ({', '.join(ids)})" if ids else "none")
        raise ValueError(must("a worker", f"get {wanted or 1} {resource} of Ray", found, advice=advice))
    if kind == NPU and resource == RESOURCE[CUDA]:
        ids = _by_place(ids, visible_ids(NPU, environment))
    environment[VISIBLE[kind]] = ",".join(cards := _ascending(kind, ids))
    return cards


def _by_place(places: Sequence[str], visible: Sequence[str] | None) -> list[str]:
    """Ids of NPUs that a node declares as GPUs: Ray counts those by their place, whatever the variable says.

    Raises:
        ValueError: When there are fewer visible cards than declared ones.
    """
    if visible is None:
        return list(places)
    try:
        return [visible[int(place)] for place in places]
    except (ValueError, IndexError):
        requirement = f"name a card for each GPU that the node declares (place {', '.join(places)})"
        raise ValueError(must(VISIBLE[NPU], requirement, ",".join(visible))) from None


def _ascending(kind: str, ids: Sequence[str]) -> list[str]:
    """Ids in ascending order; those of CUDA may be names, for which no order is needed.

    Raises:
        ValueError: When an id of an NPU is no number.
    """
    if all(one.isdecimal() for one in ids):
        return sorted(ids, key=int)
    if kind == NPU:
        raise ValueError(must_be(VISIBLE[NPU], "numbers of cards with commas between them", ",".join(ids)))
    return sorted(ids)


def cards_of_a_worker(kind: str, devices: Sequence[str | None]) -> int:
    """How many cards the devices of a worker are: 2 for ``npu:0`` and ``npu:1``.

    Args:
        kind: `NPU` or `CUDA`.
        devices: Names; None for the first card.
    """
    numbers = [int(one.partition(":")[2] or 0) for one in devices if one and one.partition(":")[0] == kind]
    return 1 + max(numbers, default=0)
