"""Rows in this process: reading, drawing and saving overlap, and their lines come in order."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from deepgen_npu.tools.batch.local import Local
from deepgen_npu.tools.batch.manifest import OK, Entry
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.batch.survey import Job


def job(number: int) -> Job:
    row = Row(number, str(number), "p", "", (), None, False, 1, 1, None, None, None, 50, 4.0)
    return Job(row, "ab" * 32, {})


class Slow:
    """Notes what begins and ends, and takes some time for all of it."""

    def __init__(self, fail: str = ""):
        self.seen: list[str] = []
        self.fail = fail
        self._lock = threading.Lock()

    def facts(self) -> dict[str, Any]:
        return {"device": "x"}

    def _do(self, what: str, number: int) -> int:
        with self._lock:
            self.seen.append(f"{what} {number}")
        time.sleep(0.02)
        if self.fail == f"{what} {number}":
            raise OSError(28, "No space left on device")
        with self._lock:
            self.seen.append(f"{what} {number} ended")
        return number

    def load(self, row: Row) -> int:
        return self._do("load", row.number)

    def draw(self, loaded: int) -> int:
        return self._do("draw", loaded)

    def save(self, one: Job, drawn: int) -> Entry:
        assert self._do("save", drawn) == one.row.number
        return Entry(drawn, one.row.id, OK)


def test_the_next_is_read_and_the_one_before_is_saved_meanwhile():
    slow = Slow()
    local = Local(lambda: slow)  # pyright: ignore
    assert [entry.row for entry in local.draw(iter(job(number) for number in range(4)))] == [0, 1, 2, 3]
    assert local.workers == [{"device": "x"}]
    at = slow.seen.index
    for number in range(1, 3):
        assert at(f"load {number + 1}") < at(f"draw {number} ended"), slow.seen
        assert at(f"save {number - 1}") < at(f"draw {number} ended"), slow.seen
    # One of each at a time, in the order of the rows.
    for what in ("load", "draw", "save"):
        own = [name for name in slow.seen if name.startswith(what)]
        assert own == [f"{what} {number}{end}" for number in range(4) for end in ("", " ended")]


def test_without_rows_no_model_is_loaded():
    local = Local(lambda: pytest.fail("loaded"))
    assert list(local.draw(iter([]))) == [] and local.workers == [] and local.state == ""


def test_rows_are_taken_one_ahead():
    """A table of 100,000 rows is not read into the memory, and images do not pile up behind a slow disk."""
    taken: list[int] = []

    def jobs():
        for number in range(9):
            taken.append(number)
            yield job(number)

    drawing = Local(lambda: Slow()).draw(jobs())  # pyright: ignore
    for number in range(3):
        assert next(drawing).row == number
        assert taken[-1] == number + 2
    drawing.close()


def test_what_cannot_be_saved_ends_the_run():
    slow = Slow("save 1")
    found = []
    with pytest.raises(OSError, match="No space left"):
        found.extend(Local(lambda: slow).draw(iter(job(number) for number in range(5))))  # pyright: ignore
    assert "draw 3" not in slow.seen


def test_who_stops_in_between_loses_no_image():
    """What was drawn is saved: also when the line of the row before cannot be written."""
    slow = Slow()
    drawing = Local(lambda: slow).draw(iter(job(number) for number in range(5)))  # pyright: ignore
    assert next(drawing).row == 0
    drawing.close()
    drawn = {name.split()[1] for name in slow.seen if name.startswith("draw")}
    assert (
        drawn == {"0", "1"} == {name.split()[1] for name in slow.seen if name.startswith("save") and "ended" in name}
    )
