"""Ways of wires around nodes: the points at which ComfyUI's front end bends them.

A wire goes straight where nothing lies between its ends. Else it turns in the gap beside its first node, runs level
where no node is, and turns again in the gap beside its last.
"""

from __future__ import annotations

from collections.abc import Sequence

from dev.workflows.graph import Box, Node, occupied


Point = tuple[int, int]
Wire = tuple[str, str]
"""Key of the node where it ends, and the name of its input."""

GAP = 18
"""Between the end of a wire and its turn. The columns of a sample are at least twice as far apart."""
CLEAR, APART = 7, 8
"""Of a level piece: its distance from nodes, and from the wires of other outputs."""
STEEP = 150
"""A wire that goes up or down by more than this swings far out to its sides, behind the nodes there."""
USED = 40
"""How much longer the way may be along a level piece that another wire of the output runs along."""
FIRST_SLOT, SLOT = 14, 20
"""From the top of a node to its first slot, and from slot to slot."""


def routes(nodes: Sequence[Node], titles: Sequence[Box] = ()) -> dict[Wire, list[Point]]:
    """The turns of each wire that has some.

    Args:
        nodes: All nodes, with the height of each.
        titles: Places where no wire should run: the titles of groups.
    """
    return _Routes(nodes, titles).found


class _Routes:
    def __init__(self, nodes: Sequence[Node], titles: Sequence[Box]):
        self.boxes = [occupied(node) for node in nodes]
        self.titles = titles
        self.levels: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        """Of each output, the level pieces of its wires: height, and where they begin and end."""
        self.found: dict[Wire, list[Point]] = {}
        by_key = {node.key: node for node in nodes}
        wires = []
        for node in nodes:
            linked = [(name, value) for name, value in node.inputs.items() if isinstance(value, tuple)]
            for number, (name, (key, slot)) in enumerate(linked):
                source = by_key[key]
                left, _, width, _ = occupied(source)
                start = left + width, _slot_height(source, slot)
                wires.append((start, (node.box[0], _slot_height(node, number)), (key, slot), (node.key, name)))
        # From the shortest on, so that a longer one from the same output runs through its turns.
        for start, end, output, wire in sorted(wires, key=lambda one: _distance(one[0], one[1])):
            if not self._is_straight(start, end):
                self.found[wire] = self._turns(start, end, output)

    def _is_straight(self, start: Point, end: Point) -> bool:
        top, bottom = sorted((start[1], end[1]))
        if start[0] > end[0] or bottom - top > max(STEEP, end[0] - start[0]):
            return False
        return not self._meets(self.boxes, (start[0], top - CLEAR, end[0] - start[0], bottom - top + 2 * CLEAR))

    @staticmethod
    def _meets(boxes: Sequence[Box], area: Box) -> bool:
        x, y, width, height = area
        return any(
            left < x + width and left + wide > x and top < y + height and top + high > y
            for left, top, wide, high in boxes
        )

    def _turns(self, start: Point, end: Point, output: tuple[str, int]) -> list[Point]:
        left, right = start[0] + GAP, end[0] - GAP
        if abs(left - right) <= GAP:
            # Columns side by side: once up or down between them, each output at a place of its own.
            middle = (start[0] + end[0]) // 2 + 5 * (output[1] - 2)
            down = SLOT if end[1] > start[1] else -SLOT
            return [(middle, start[1] + down), (middle, end[1] - down)]
        own = self.levels.setdefault(output, [])
        level = self._level(start, end, output)
        between = sorted(
            {x for y, *ends in own if y == level for x in ends if min(left, right) < x < max(left, right)}
        )
        if left > right:
            between.reverse()
        own.append((level, left, right))
        turns = [(x, level) for x in (left, *between, right)]
        # The last piece would swing out, too, if it were long.
        if abs(end[1] - level) > STEEP:
            turns.append((right, end[1] - (SLOT if end[1] > level else -SLOT)))
        if abs(start[1] - level) > STEEP:
            turns.insert(0, (left, start[1] + (SLOT if level > start[1] else -SLOT)))
        return turns

    def _level(self, start: Point, end: Point, output: tuple[str, int]) -> int:
        """The height of the level piece: free in its length, the way to it and from it free as well, and short."""
        turns = start[0] + GAP, end[0] - GAP
        left, width = min(turns), abs(turns[1] - turns[0])
        others = [
            (min(ends), y, abs(ends[0] - ends[1]), 0)
            for key, pieces in self.levels.items()
            if key != output
            for y, *ends in pieces
        ]
        used = {y for y, *_ in self.levels[output]}

        def cost(y: int) -> int:
            blocked = 10_000 * self._meets([*self.boxes, *self.titles], (left, y - CLEAR, width, 2 * CLEAR))
            blocked += 10_000 * self._meets(others, (left, y - APART, width, 2 * APART))
            for x, (_, height) in zip(turns, (start, end), strict=True):
                blocked += 10_000 * self._meets(self.boxes, (x - 2, min(y, height), 4, abs(y - height)))
            return blocked + abs(start[1] - y) + abs(end[1] - y) - USED * (y in used)

        return min(
            range(min(box[1] for box in self.boxes) - 60, max(y + h for _, y, _, h in self.boxes) + 60), key=cost
        )


def _slot_height(node: Node, slot: int) -> int:
    return node.box[1] - FIRST_SLOT if node.collapsed else node.box[1] + FIRST_SLOT + SLOT * slot


def _distance(one: Point, other: Point) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])
