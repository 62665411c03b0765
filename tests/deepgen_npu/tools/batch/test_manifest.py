"""The journal: whole lines, the last of which counts, whatever ended the process that wrote them."""

from __future__ import annotations

import json
import time

import pytest

from deepgen_npu.files import FileError
from deepgen_npu.tools.batch.manifest import ERROR, OK, Entry, History, Manifest, cut_torn_line, read_entries


MARK, OTHER = "ab" * 32, "cd" * 32


def ok(name: str, mark: str = MARK, **facts) -> Entry:
    return Entry(0, name, OK, files=["images/x.png"], seconds=2.0, width=10, height=10, fingerprint=mark, **facts)


def write(path, *entries: Entry) -> None:
    manifest = Manifest(path)
    for entry in entries:
        manifest.add(entry)
    manifest.close()


def test_a_line_says_what_there_is_to_say(tmp_path):
    write(tmp_path / "m.jsonl", Entry(0, "\u732b", ERROR, error="no \udcff", attempts=0, extra={"a": None}), ok("b"))
    error, made = [value for _, value in read_entries(tmp_path / "m.jsonl")]
    assert abs(error.pop("finished") - time.time()) < 60
    wanted = {"row": 0, "id": "\u732b", "status": "error", "error": "no \udcff", "attempts": 0, "extra": {"a": None}}
    assert error == wanted and "error" not in made and made["attempts"] == 1


@pytest.mark.parametrize("torn", [b"", b"{", b'{"row": 2, "id": "c", "status": "ok"}', b"\0" * 200_000])
def test_what_is_torn_at_the_end_is_cut_off(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    write(path, ok("a"), ok("b"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [value["id"] for _, value in read_entries(path)] == ["a", "b"] and path.read_bytes() == whole + torn
    manifest = Manifest(path)
    assert manifest.torn == len(torn) and path.read_bytes() == whole
    manifest.close()
    path.write_bytes(torn)
    assert cut_torn_line(path) == len(torn) and path.read_bytes() == b""


def test_a_disk_that_takes_a_part_of_a_line_gets_the_rest(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            return self.file.write(content[:7])

        def __getattr__(self, name):
            return getattr(self.file, name)

    manifest = Manifest(tmp_path / "m.jsonl")
    manifest._file = Slow(manifest._file)  # pyright: ignore
    manifest.add(ok("a"))
    manifest.add(ok("b"))
    manifest.close()
    assert [value["id"] for _, value in read_entries(tmp_path / "m.jsonl")] == ["a", "b"]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a"}', '{"id": 1, "status": "ok"}', '{"id": "a", "status": "?"}'])
def test_a_line_of_something_else_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    write(path, ok("a"))
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(FileError, match=r"line 2 of .*m\.jsonl must be a line that batch wrote, got .* Remove the"):
        History([path])


def test_the_latest_line_counts(tmp_path, monkeypatch):
    """Within a file the last, whatever the clock was set to; of several files the newest."""
    first, second = tmp_path / "m1.jsonl", tmp_path / "m2.jsonl"
    now = iter([100.0, 50.0, 200.0, 10.0, 60.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    write(first, ok("a"), ok("a", OTHER), ok("b"))
    write(second, Entry(0, "b", ERROR, error="x"), Entry(0, "a", ERROR, error="x"))
    history = History([first, second])
    a, b = history.get("a"), history.get("b")
    assert a is not None and b is not None and history.get("c") is None
    assert (a.file, a.fingerprint) == (1, b"") and history.line(a)["error"] == "x"
    assert b.is_of(MARK) and not b.is_of(OTHER) and history.line(b)["status"] == OK
    (only,) = [History([first]).get("a")]
    assert only is not None and only.is_of(OTHER)


def test_times_are_of_drawn_images_alone(tmp_path):
    kept = Entry(0, "c", OK, files=["x"], width=10, height=10, fingerprint=MARK, attempts=0)
    write(tmp_path / "m.jsonl", ok("a", device="x"), Entry(0, "b", ERROR, error="x", device="y"), kept)
    history = History([tmp_path / "m.jsonl"])
    assert (history.seconds, history.pixels, history.devices) == (2.0, 100, {"x"})


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .*m\.jsonl"):
        write(tmp_path / "m.jsonl", ok("a"))


def test_a_line_is_on_the_disk_before_the_next_row(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    write(tmp_path / "m.jsonl", ok("a"), Entry(0, "b", ERROR, error="x"), ok("c"))
    assert len(synced) == 2
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[2])["id"] == "c"
