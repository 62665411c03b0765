"""What a worker answers, in this process and without Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepgen_npu.errors import DeepGenError
from deepgen_npu.tools.batch.manifest import OK, Entry
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.batch.worker import Worker, same_threads, take_probe


ROOT = Path(__file__).parents[4]


def job(number: int = 0, prompt: str = "x") -> dict[str, Any]:
    row = Row(number, f"r{number}", prompt, "", (), None, False, 1, 1, None, None, None, 1, 1.0)
    return {"row": {name: value for name, value in vars(row).items() if name != "extra"}, "fingerprint": "f"}


def worker(**stages: Any) -> Worker:
    """A worker whose painter does nothing but what is given here."""
    usual = {
        "load": lambda row: row,
        "draw": lambda row: row,
        "save": lambda job, row: Entry(row.number, row.id, OK, files=["a.png"], fingerprint=job.fingerprint),
    }
    found = Worker({})
    found._painter = SimpleNamespace(**{**usual, **stages})
    return found


def failing(error: Exception) -> Any:
    def fail(*arguments: Any) -> None:
        raise error

    return fail


def test_a_line_comes_back_without_what_the_driver_knows():
    line = worker().draw(job())
    assert line["status"] == OK and line["files"] == ["a.png"] and line["fingerprint"] == "f"
    assert not {"row", "id", "extra", "references", "attempts"} & {*line}


@pytest.mark.parametrize(
    ("stage", "error", "answer"),
    [
        (
            "save",
            OSError(28, "No space left on device", "out/a.png"),
            {"fatal": "out/a.png: No space left on device."},
        ),
        ("draw", DeepGenError("3 rows found too little memory."), {"fatal": "3 rows found too little memory."}),
        ("draw", RuntimeError("aicore exception"), {"broken": "RuntimeError: aicore exception"}),
        ("load", KeyError("x"), {"broken": "KeyError: 'x'"}),
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(stage, error, answer):
    found = worker(**{stage: failing(error)}).draw(job())
    assert isinstance(found.pop("node"), str) and found == answer


def test_a_row_is_drawn_while_the_one_before_is_saved():
    """The first row can be saved only when the second is drawn."""
    second = threading.Event()

    def draw(row: Row) -> Row:
        if row.number:
            second.set()
        return row

    def save(job: Any, row: Row) -> Entry:
        return Entry(row.number, row.id, OK if second.wait(20) else "late")

    both = worker(draw=draw, save=save)
    with ThreadPoolExecutor(2) as calls:
        answers = [call.result() for call in [calls.submit(both.draw, job(number)) for number in range(2)]]
    assert [answer["status"] for answer in answers] == [OK, OK]


def test_a_worker_takes_what_the_driver_left(tmp_path):
    (tmp_path / "probe").touch()
    take_probe(tmp_path, "probe")
    with pytest.raises(
        ValueError, match=r"is not the folder of the command: choose an --output that all nodes share\."
    ):
        take_probe(tmp_path, "probe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot be written \(.+\)\."):
        take_probe(tmp_path, "folder")


def test_a_worker_computes_with_the_threads_of_the_driver():
    environment = {"OMP_NUM_THREADS": "1", "other": "2"}
    same_threads("4", environment)
    assert environment == {"OMP_NUM_THREADS": "4", "other": "2"}
    same_threads(None, environment)
    assert environment == {"other": "2"}


def test_the_command_needs_ray_only_to_work_with_it():
    code = "import sys, deepgen_npu.cli, deepgen_npu.tools.batch.cluster; print({'ray', 'torch'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"
