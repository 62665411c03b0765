"""On a card: the table of a step, with a tiny model. Times are reported, never judged."""

from __future__ import annotations

from dev.speed.step import table


def test_the_table_of_a_step(device, hardware_table):
    lines = table(str(device), size="tiny", side=64, steps=2, rounds=1).splitlines()
    for line in lines:
        hardware_table.append(("step, tiny", line))
    assert sum("| captured |" in line for line in lines) == 2
