"""What is seen of a sample when it is opened: texts that can be read, and no node behind another.

The heights here are those of the files. What the front end makes of them is in `test_next_front_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from workflows.test_workflows import NAMES, ui

from dev.workflows.graph import COLLAPSED_WIDTH, TITLE


LAPTOP = (1440, 900)
READABLE = 0.6
"""Front ends draw no text at a scale of less than 0.57; at 0.6 it was read without trouble."""
PADDING, FILLED = 10, 0.75
"""Around all nodes, and the part of the canvas that the front end fills with them when it opens a template."""

Box = Sequence[float]
"""x, y, width, height."""


def occupied(node: dict[str, Any]) -> Box:
    """With the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    if node.get("flags", {}).get("collapsed"):
        return x, y - TITLE, COLLAPSED_WIDTH, TITLE
    return x, y - TITLE, width, height + TITLE


def overlap(one: Box, other: Box) -> bool:
    return all(
        one[axis] < other[axis] + other[axis + 2] and other[axis] < one[axis] + one[axis + 2] for axis in (0, 1)
    )


def contains(group: Box, box: Box) -> bool:
    return all(
        group[axis] <= box[axis] and box[axis] + box[axis + 2] <= group[axis] + group[axis + 2] for axis in (0, 1)
    )


def first_scale(boxes: Sequence[Box], canvas: tuple[int, int]) -> float:
    """Of a template as it is opened, which shows all nodes."""
    sides = []
    for axis in (0, 1):
        start, end = min(box[axis] for box in boxes), max(box[axis] + box[axis + 2] for box in boxes)
        sides.append(end - start + 2 * PADDING)
    return FILLED * min(length / side for length, side in zip(canvas, sides, strict=True))


@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_texts_can_be_read_on_a_laptop(self, name):
        assert first_scale([occupied(node) for node in ui(name)["nodes"]], LAPTOP) >= READABLE + 0.02

    def test_nothing_lies_over_anything(self, name):
        workflow = ui(name)
        boxes = [occupied(node) for node in workflow["nodes"]]
        assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
        groups = [group["bounding"] for group in workflow["groups"]]
        assert not [pair for pair in combinations(groups, 2) if overlap(*pair)]
        # All but the note belong to a step, or to what is muted.
        assert sum(contains(group, box) for group in groups for box in boxes) == len(boxes) - 1

    def test_wires_turn_beside_nodes(self, name):
        workflow = ui(name)
        turns = [turn["pos"] for turn in workflow["extra"].get("reroutes", [])]
        behind = [turn for turn in turns for node in workflow["nodes"] if overlap((*turn, 0, 0), occupied(node))]
        assert turns and not behind


def test_the_measure_can_fail():
    assert first_scale([(0, 0, 2180, 1350)], LAPTOP) < READABLE
    assert overlap((0, 0, 10, 10), (9, 9, 5, 5)) and not overlap((0, 0, 10, 10), (10, 0, 5, 5))
    assert contains((0, 0, 10, 10), (2, 2, 8, 8)) and not contains((0, 0, 10, 10), (2, 2, 9, 8))
