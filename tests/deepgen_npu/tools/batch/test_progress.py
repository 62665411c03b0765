"""What an operator is told before and while rows are made."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from deepgen_npu.tools.batch.manifest import ERROR, OK, Entry, History
from deepgen_npu.tools.batch.progress import MANY, REPORT, Checking, Progress, duration, faults, forecast
from deepgen_npu.tools.batch.rows import BadRow
from deepgen_npu.tools.batch.survey import BAD, DONE, ELSEWHERE, KEPT, KEPT_ERROR, TO_MAKE, Survey


def survey(*states: int, images: int = 0, pixels: int = 0, seconds: float = 0.0, drawn: int = 0) -> Survey:
    history = History([])
    history.seconds, history.pixels = seconds, drawn
    return Survey(history, states=bytearray(states), images=images, pixels=pixels)


@pytest.fixture
def free(monkeypatch):
    """Sets how much room the disk has."""
    usage = namedtuple("usage", "total used free")

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1 << 50, 0, count))

    free(1 << 40)
    return free


def test_before_the_first_image_times_are_those_of_the_report(tmp_path, free):
    """100,000 images of 512 x 512 on 8 devices: 5.67 s each."""
    found = survey(*[TO_MAKE] * 1000, images=100_000, pixels=100_000 << 18)
    lines = forecast(found, tmp_path / "new" / "out", 8).splitlines()
    assert lines == [
        "1,000 rows: 1,000 to make (100,000 images).",
        "Space: about 48.83 GiB, at most 73.24 GiB; 1024.00 GiB are free.",
        f"Time: about 19 h 41 min on 8 devices ({REPORT}).",
    ]
    assert forecast(found, tmp_path, 1).endswith(f"Time: about 157 h 30 min on one device ({REPORT}).")
    assert forecast(found, tmp_path, None).endswith(f"Time: about 157 h 30 min divided by devices ({REPORT}).")


def test_larger_images_take_longer(tmp_path, free):
    """By their pixels: 1024 x 1024 are four of 512 x 512."""
    found = survey(TO_MAKE, images=1, pixels=1 << 20)
    assert f"Time: about 23 s on one device ({REPORT})." in forecast(found, tmp_path, 1)


def test_afterwards_they_are_those_of_the_folder(tmp_path, free):
    found = survey(TO_MAKE, images=4, pixels=4 << 18, seconds=30.0, drawn=10 << 18)
    assert "Time: about 12 s on one device (3 s an image, as so far in this folder)." in forecast(found, tmp_path, 1)


def test_a_disk_that_may_be_too_small(tmp_path, free):
    found = survey(TO_MAKE, images=1, pixels=1 << 20)
    free(3 << 20)
    assert "too little" not in forecast(found, tmp_path, 1)
    free((3 << 20) - 1)
    words = "are free. That may be too little: the run stops when the disk is full, and goes on when there is room."
    assert words in forecast(found, tmp_path, 1)


def test_where_there_is_nothing_to_do_there_is_nothing_to_expect(tmp_path):
    found = survey(DONE, DONE, KEPT, BAD, KEPT_ERROR, ELSEWHERE)
    assert forecast(found, tmp_path, 1) == (
        "5 rows: 0 to make (0 images), 2 done before, 1 finished without a line in the manifest, "
        "1 that cannot be made, 1 that failed before and are left so."
    )


def test_the_first_faults_are_shown():
    found = survey()
    found.errors = {number: BadRow(number, f"i{number}", "no") for number in range(22)}
    lines = faults(found).splitlines()
    assert lines[0] == "Row 0 (id i0): no" and lines[19:] == ["Row 19 (id i19): no", "... and 2 more."]
    del found.errors[20], found.errors[21]
    assert len(faults(found).splitlines()) == 20


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 s"), (29, "29 s"), (31, "1 min"), (3569, "59 min"), (3600, "1 h 0 min"), (12_000_000, "3,333 h 20 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_line_of_a_run(capsys):
    progress = Progress(survey(TO_MAKE, BAD, KEPT, DONE))
    progress.close()
    assert capsys.readouterr().err == "", "nothing before the first row: loading has a bar of its own"
    made = Entry(0, "a", OK, files=["x", "y"], seconds=1.0)
    for entry in (made, Entry(1, "b", ERROR, attempts=0), Entry(2, "c", OK, files=["x"], attempts=0)):
        progress.add(entry, "2 of 3")
    progress.tell("a sentence")
    progress.close()
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1].split("\r")[-1]
    assert "3/3" in last and "errors=1" in last and "workers=2 of 3" in last and shown.out == ""
    rate = float(last.split("images/min=")[1].split(",")[0].rstrip("]"))
    assert 60 < rate < 121, "two images in a little more than the second that the first row took"
    assert "a sentence" in shown.err.splitlines()


def test_a_long_check_has_a_bar(capsys):
    checking = Checking()
    for _ in range(MANY - 1):
        checking.add()
    assert capsys.readouterr().err == ""
    checking.add()
    checking.add()
    checking.close()
    assert f"Checking rows: {MANY + 1}row" in capsys.readouterr().err
    Checking().close()
