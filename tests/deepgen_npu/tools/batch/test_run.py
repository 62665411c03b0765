"""Nothing is lost and nothing is made twice, whatever ends a run."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import tqdm.auto
from batch_files import picture, stand_in
from platforms import linux_only
from stderr import error_in

from deepgen_npu.image_files import open_image
from deepgen_npu.tools.batch import loading
from deepgen_npu.tools.batch.drawing import Drawn, RunError
from deepgen_npu.tools.batch.folder import OutputFolder
from deepgen_npu.tools.batch.manifest import Manifest
from deepgen_npu.tools.batch.names import image_files
from deepgen_npu.tools.batch.rows import Row
from deepgen_npu.tools.batch.run import Tally


def test_two_runs_are_one(quick, capsys):
    """The second draws what the first has not; a third nothing. `run.json` says what drew last."""
    quick.rows(*({"prompt": f"p{number}"} for number in range(2)))
    assert quick.run() == 0
    first = quick.last()
    quick.rows(*({"prompt": f"p{number}"} for number in range(5)), {"prompt": "cannot"})
    assert quick.run() == 1 and quick.drawn == [f"{number:08d}" for number in range(6)]
    assert {name: quick.last()[name] for name in first} == first
    facts = json.loads((quick.output / "run.json").read_text())
    assert facts["done"].pop("seconds") >= 0
    assert facts["done"] == {"made": 3, "kept": 0, "failed": 1, "done": 2, "images": 3}
    assert facts["rows"] == 6 and facts["table"] == str(quick.table) and facts["model"] == "tiny"
    assert facts["started"] <= facts["ended"] and facts["versions"]["Python"] and facts["defaults"]["seed"] == 42
    (worker,) = facts["workers"]
    assert worker["device"] == "stand-in" and worker["place"] == "cpu" and worker["versions"]["torch"]
    printed = capsys.readouterr().out
    assert "3 rows made (3 images" in printed and "), 2 done before, 1 failed.\n1 of 6 rows failed: " in printed
    quick.rows(*({"prompt": f"p{number}"} for number in range(5)))
    assert quick.run() == 0 and len(quick.drawn) == 6
    assert json.loads((quick.output / "run.json").read_text())["workers"] == [worker]
    assert (
        "5 rows: 0 to make (0 images), 5 done before.\n0 rows made (0 images), 5 done before."
        in capsys.readouterr().out
    )


def test_what_a_run_did_in_words():
    assert str(Tally()) == "0 rows made (0 images)."
    words = "1,000 rows made (4,000 images, 120.0 images a minute), 7 done before, 2 found finished, 3 failed."
    assert str(Tally(1000, 2, 3, 7, 4000, 2000.0)) == words


def test_different_devices_in_a_folder_are_told(quick, capsys, monkeypatch):
    quick.rows({"prompt": "a"})
    assert quick.run() == 0 and "different devices" not in capsys.readouterr().err
    text = (quick.output / "manifest.jsonl").read_text()
    (quick.output / "manifest.jsonl").write_text(text.replace("stand-in", "another"))
    quick.rows({"prompt": "a"}, {"prompt": "b"})
    assert quick.run() == 0
    assert "were drawn on different devices (another, stand-in), whose images differ" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_run_goes_on(quick, capsys, monkeypatch, number):
    """The image of the row before is on the disk by then, and is found by the next run."""
    quick.rows(*({"prompt": f"p{number}"} for number in range(4)), {"prompt": "x", "height": 63})

    def stop(row: Row) -> None:
        if row.number == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_painter", lambda settings: stand_in(settings, stop))
        assert quick.run() == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "Stopped after 1 of 5 rows; the same command goes on."
    assert quick.images() == {"00000000.png", "00000001.png"} and [line["row"] for line in quick.lines()] == [0]
    facts = json.loads((quick.output / "run.json").read_text())
    assert facts["done"]["made"] == 1 and facts["ended"]
    assert quick.run() == 1 and quick.drawn == ["00000002", "00000003"]
    assert "1 done before, 1 found finished, 1 failed." in capsys.readouterr().out
    quick.require_whole()


def test_a_row_that_fails_while_it_is_drawn_is_a_line(quick):
    quick.rows({"prompt": "cannot be drawn", "x": 1}, {"prompt": "b"})
    assert quick.run() == 1
    line = quick.last()["00000000"]
    assert line["error"] == "cannot be drawn" and line["status"] == "error" and line["extra"] == {"x": 1}
    assert line["attempts"] == 1 and line["device"] == "stand-in" and "files" not in line
    assert quick.images() == {"00000001.png"}


def test_the_fault_of_a_run_ends_it(quick, capsys, monkeypatch):
    quick.rows(*({"prompt": f"p{number}"} for number in range(3)))

    def fail(row: Row) -> None:
        if row.number == 1:
            raise RunError("no card.")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_painter", lambda settings: stand_in(settings, fail))
        assert quick.run() == 2
    assert error_in(capsys.readouterr().err) == "error: no card."
    assert quick.run() == 0 and quick.drawn == ["00000001", "00000002"]
    quick.require_whole()


def full(what: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A disk that takes no more after so many calls, and of the next only a part."""
    kept = getattr(os, what)
    calls: list[int] = []

    def limited(descriptor, *arguments):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(".png"):
            calls.append(1)
            if len(calls) > count:
                os.ftruncate(descriptor, 100)
                raise OSError(errno.ENOSPC, "No space left on device")
        return kept(descriptor, *arguments)

    monkeypatch.setattr(os, what, limited)


@linux_only("the name of an open file")
def test_a_disk_that_is_full_of_images(quick, capsys, monkeypatch):
    """It ends the run at once; with room, the same command goes on."""
    quick.rows(*({"prompt": f"p{number}", "n": 2} for number in range(4)))
    with monkeypatch.context() as patch:
        full("fsync", patch, 3)
        assert quick.run() == 2
    place = quick.output / image_files("00000001", 2)[1]
    assert error_in(capsys.readouterr().err) == f"error: {place}: No space left on device."
    assert quick.images() == {"00000000_0.png", "00000000_1.png", "00000001_0.png"}, "and no unfinished one"
    for name in quick.images():
        found = next(quick.output.rglob(name))
        assert open_image(found).tobytes() == picture(f"p{int(name[:8])}", 42 + int(name[:8]) + int(name[9])).tobytes()
    assert [line["row"] for line in quick.lines()] == [0]
    quick.drawn.clear()
    assert quick.run() == 0 and quick.drawn == ["00000001", "00000002", "00000003"]
    quick.require_whole()


def test_a_disk_that_is_full_of_lines(quick, capsys, monkeypatch):
    """Half of a line is there: it is cut off, and the image is found."""
    quick.rows(*({"prompt": f"p{number}"} for number in range(4)))
    true_add = Manifest.add
    added: list[int] = []

    def add(manifest, entry):
        added.append(entry.row)
        if len(added) == 3:
            manifest._file.write(b'{"row": 2, "id": "0000')
            raise OSError(errno.ENOSPC, "No space left on device", str(manifest.path))
        true_add(manifest, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", add)
        assert quick.run() == 2
    assert error_in(capsys.readouterr().err) == f"error: {quick.output / 'manifest.jsonl'}: No space left on device."
    before = [*quick.drawn]
    torn = (quick.output / "manifest.jsonl").read_bytes()
    assert quick.run("--dry_run") == 0
    assert (quick.output / "manifest.jsonl").read_bytes() == torn, "a dry run writes nothing"
    assert quick.run() == 0 and not {*before} & {*quick.drawn[len(before) :]}
    assert "was cut off (22 bytes)." in capsys.readouterr().err
    quick.require_whole()


def test_a_disk_without_any_room(quick, capsys, monkeypatch):
    """Not even for the facts of the run."""
    quick.rows({"prompt": "a"})

    def refuse(folder, facts):
        raise OSError(errno.ENOSPC, "No space left on device", "run.json")

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write_facts", refuse)
        assert quick.run() == 2
    assert error_in(capsys.readouterr().err) == "error: run.json: No space left on device."
    assert quick.run() == 0


ROUNDS = 20


@linux_only("a process forks, and its children are killed")
def test_kills_at_random_times(quick, monkeypatch):
    """Never half of an image, never one made twice, and in the end nothing is missing and nothing is left over."""
    quick.rows(*({"prompt": f"p{number}", "n": 1 + number % 2} for number in range(60)))
    log = quick.folder / "drawn"

    def note(row: Row) -> Drawn | None:
        with log.open("a") as file:
            file.write(f"{row.id}\n")
        time.sleep(0.002)
        return None

    monkeypatch.setattr(loading, "load_painter", lambda settings: stand_in(settings, note))
    numbers = random.Random(16)
    states = []
    for _ in range(ROUNDS):
        lines = [line["id"] for line in quick.lines()]
        log.write_text("")
        child = os.fork()
        if not child:
            run_quietly(quick)
        end = time.monotonic() + 10
        while not (ended := os.waitpid(child, os.WNOHANG)[0]) and not log.stat().st_size and time.monotonic() < end:
            time.sleep(0.001)
        if not ended:
            time.sleep(numbers.uniform(0, 0.012))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        drawn = log.read_text().splitlines()
        assert not {*drawn} & {*lines}, "what has a line is not drawn again"
        assert len(drawn) == len({*drawn})
        whole = {name for name in quick.images() if not name.startswith(".")}
        for name in whole:
            stem, _, number = name.removesuffix(".png").partition("_")
            expected = picture(f"p{int(stem)}", 42 + int(stem) + int(number or 0))
            assert open_image(next(quick.output.rglob(name))).tobytes() == expected.tobytes()
        states.append((len(drawn), len(whole), len(quick.images()) - len(whole)))
    assert quick.run() == 0
    quick.require_whole()
    assert len(quick.last()) == 60 and len(quick.images()) == 90
    assert sum(1 for drawn, _, _ in states if drawn) >= 5, states
    count = len(quick.lines())
    assert quick.run() == 0 and len(quick.lines()) == count == 60


def run_quietly(quick) -> None:
    """In a child process, which this ends."""
    status = 99
    try:
        # That of tqdm is shared with the parent, which would wait for it forever if this is killed meanwhile.
        for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        status = quick.run()
    finally:
        os._exit(status)
