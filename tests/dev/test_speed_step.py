"""The table of a step, small and on the CPU: the contestants compute the same."""

from __future__ import annotations

import re

from dev.speed.step import TASKS, table


def test_the_contestants_compute_the_same():
    text = table("cpu", dtype="float32", side=64, steps=2, rounds=1)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(tuple(f"| {task}" for task in TASKS))]
    assert [row[1] for row in rows] == ["original", "eager"] * 2
    assert all(row[-1] == "not known |" for row in rows) and [row[4] for row in rows[::2]] == ["1.00 x"] * 2
    differences = [float(found) for found in re.findall(r" (\d\.\de[+-]\d\d)", text.splitlines()[-1])]
    assert len(differences) == len(TASKS) and max(differences) < 1e-4, "float32"
