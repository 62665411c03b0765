"""The facts of a text as classes: the targets of the text stage."""

from __future__ import annotations

from .edits import KINDS, Edit
from .scenes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, Scene
from .wording import Mentioned


OPEN = "open"
"""The class of what a caption does not mention."""

CLASSES: dict[str, tuple[str, ...]] = {
    "count": ("1", "2"),
    "background": (*BACKGROUNDS, OPEN),
    **{f"shape_{number}": SHAPES for number in (1, 2)},
    **{f"colour_{number}": (*COLOURS, OPEN) for number in (1, 2)},
    **{f"place_{number}": (*PLACES, OPEN) for number in (1, 2)},
    **{f"size_{number}": tuple(RADII) for number in (1, 2)},
    "kind": KINDS,
    "new_colour": tuple(COLOURS),
    "new_background": tuple(BACKGROUNDS),
    "new_shape": SHAPES,
    "new_place": tuple(PLACES),
    "subject_colour": tuple(COLOURS),
    "source_shape": SHAPES,
    "source_colour": tuple(COLOURS),
    "source_place": tuple(PLACES),
    "source_background": tuple(BACKGROUNDS),
}


def of_caption(scene: Scene, mentioned: Mentioned) -> dict[str, str]:
    """Class by slot, without the slots that the scene does not have."""
    slots = {
        "count": str(len(scene.things)),
        "background": scene.background if mentioned.background else OPEN,
    }
    for number, thing in enumerate(scene.things, start=1):
        slots[f"shape_{number}"] = thing.shape
        slots[f"colour_{number}"] = thing.colour if mentioned.colour else OPEN
        slots[f"place_{number}"] = thing.place if mentioned.place else OPEN
        slots[f"size_{number}"] = thing.size
    return slots


def of_edit(edit: Edit) -> dict[str, str]:
    """Class by slot, without the slots that the edit does not have."""
    source = edit.sources[0]
    slots = {"kind": edit.kind, "source_background": source.background}
    if len(source.things) == 1:
        (thing,) = source.things
        slots |= {"source_shape": thing.shape, "source_colour": thing.colour, "source_place": thing.place}
    elif edit.kind in ("recolour", "replace", "remove"):
        slots["subject_colour"] = source.things[edit.subject].colour
    if edit.kind == "background":
        slots["new_background"] = edit.target.background
    if edit.kind in ("recolour", "replace", "move", "add"):
        wanted = edit.target.things[edit.subject]
        if edit.kind in ("recolour", "add"):
            slots["new_colour"] = wanted.colour
        if edit.kind in ("replace", "add"):
            slots["new_shape"] = wanted.shape
        if edit.kind in ("move", "add"):
            slots["new_place"] = wanted.place
    return slots
