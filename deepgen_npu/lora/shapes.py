"""Whether the tensors of a layer in a LoRA file fit each other and the layer: by their shapes alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..checks import must
from .keys import BIASES, WEIGHTS, kind_of


Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def check(shapes: Shapes, weight: Shape) -> None:
    """Whether tensors fit each other and the weight that they change.

    Args:
        shapes: By what the tensors are.
        weight: [n, m, ...]; [n] of a norm.

    Raises:
        ValueError: Saying what does not fit; the sentence begins with what the tensors are.
    """
    for part, shape in shapes.items():
        if not math.prod(shape):
            raise ValueError(must(f"its {part}", "have elements", list(shape)))
    found = {part: shapes[part] for part in sorted(shapes.keys() & WEIGHTS)}
    if (kind := kind_of(shapes)) is not None:
        made = _KINDS[kind](shapes)
        if made is None:
            listed = ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))
            raise ValueError(f"the tensors of its {kind} do not fit each other: {listed}.")
        found[kind] = made
    for part, shape in found.items():
        if not shape or shape[0] != weight[0] or math.prod(shape) != math.prod(weight):
            raise ValueError(must(f"its {part}", f"change a weight of the shape {list(weight)}", list(shape)))
    for part in sorted(shapes.keys() & BIASES):
        if (count := math.prod(shapes[part])) != weight[0]:
            raise ValueError(must(f"its {part}", f"change a bias of {weight[0]} values", count))
    if "dora_scale" in shapes and (count := math.prod(shapes["dora_scale"])) not in weight[:2]:
        raise ValueError(must("its dora_scale", f"have {weight[0]} values", count))


def rank(shapes: Shapes) -> int | None:
    """The rank of an adapter; None for a LoKr of which both factors are whole, and for what has none."""
    for part in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if shapes.get(part):
            return shapes[part][0]
    return None


def _lora(shapes: Shapes) -> Shape | None:
    up, down, core = shapes["up"], shapes["down"], shapes.get("mid")
    if len(up) < 2 or len(down) < 2:
        return None
    inner = math.prod(up[1:])
    if core is None:
        return (up[0], *down[1:]) if inner == down[0] else None
    if len(core) != 4 or core[:2] != (inner, down[0]):
        return None
    return up[0], math.prod(down[1:]), *core[2:]


def _product(a: Shape, b: Shape, core: Shape | None) -> Shape | None:
    """Of a [n, r] @ b [r, m]; with a core [r, s, h, w] they are [r, n] and [s, m]."""
    if len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1]) if a[1] == b[0] else None
    return (a[1], b[1], *core[2:]) if len(core) == 4 and core[:2] == (a[0], b[0]) else None


def _loha(shapes: Shapes) -> Shape | None:
    first, second = (
        _product(shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"], shapes.get(f"hada_t{number}"))
        for number in (1, 2)
    )
    return first if first == second else None


def _lokr(shapes: Shapes) -> Shape | None:
    first, second = (
        shapes[f"lokr_w{number}"]
        if f"lokr_w{number}" in shapes
        else _product(shapes[f"lokr_w{number}_a"], shapes[f"lokr_w{number}_b"], core)
        for number, core in ((1, None), (2, shapes.get("lokr_t2")))
    )
    if first is None or second is None or len(first) != 2 or len(second) not in (2, 4):
        return None
    return first[0] * second[0], first[1] * second[1], *second[2:]


_KINDS: dict[str, Callable[[Shapes], Shape | None]] = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr}
"""The shape of what each kind adds to a weight; None if its tensors do not fit each other."""
