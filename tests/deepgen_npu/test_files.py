"""Reading without trust, and writing completely or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from platforms import not_on_windows

from deepgen_npu.files import FileError, new_folder, open_regular, read_json, replacing, save_somewhere


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "must be a JSON object, got list"),
        (b'{"a": ', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": NaN}', "contains NaN"),
        (b'{"a": -Infinity}', "contains -Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "nested deeper than 64"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b"\xff\xfe{}", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_meant(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=reason) as raised:
        read_json(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5]}


def test_only_regular_files_of_some_size_are_read(tmp_path):
    with pytest.raises(FileError, match="a folder"):
        read_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileError, match="a named pipe"):
            read_json(tmp_path / "pipe")
    (tmp_path / "large.json").write_bytes(b"{}" + b" " * 100)
    with pytest.raises(FileError, match="must be a file of at most 100 bytes, got 102 bytes"):
        read_json(tmp_path / "large.json", max_bytes=100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    # As long as names may be, but for a few bytes; on Windows that is the length of whole paths.
    path = tmp_path / ("n" * (240 if os.name == "posix" else 100) + ".png")
    with replacing(path) as unfinished:
        assert unfinished.suffix == ".png" and unfinished.parent == tmp_path
        unfinished.write_bytes(b"first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]


@not_on_windows("links need rights that users do not have")
def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("deepgen_npu.files.secrets.token_hex", lambda count: "known")
    (tmp_path / "elsewhere").write_bytes(b"precious")
    Path(tmp_path / ".known.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.png") as unfinished:
        unfinished.write_bytes(b"overwritten")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious" and (tmp_path / ".known.png").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look at what it is and the opening."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    before = os.stat(tmp_path / "file")
    monkeypatch.setattr("deepgen_npu.files.os.stat", lambda path: before)
    errors = []

    def read():
        try:
            open_regular(tmp_path / "pipe").close()
        except FileError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert errors == [f"{tmp_path / 'pipe'} must be a regular file, got a named pipe."]


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("empty", [False, True])
def test_a_new_folder_is_complete_or_not_there(tmp_path, empty):
    folder = tmp_path / "parent" / ("n" * 250)
    if empty:
        folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt), new_folder(folder) as unfinished:
        (unfinished / "a").write_text("half")
        assert unfinished.parent == folder.parent and unfinished.name.startswith(".")
        raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == before
    with new_folder(folder) as unfinished:
        (unfinished / "a").write_text("new")
    assert contents(tmp_path) == {f"parent/{folder.name}/a": "new"}


def test_a_folder_that_has_content_is_replaced_only_on_request(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    (tmp_path / "file").write_text("mine")
    for path, options in ((folder, {}), (tmp_path / "file", {}), (tmp_path / "file", {"replace": True})):
        with pytest.raises(FileError, match="already exists"), new_folder(path, **options):
            pass
    assert contents(tmp_path) == {"model/old": "old", "file": "mine"}
    with new_folder(folder, replace=True) as unfinished:
        (unfinished / "new").write_text("new")
    assert contents(tmp_path) == {"model/new": "new", "file": "mine"}
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


def test_what_comes_into_an_empty_folder_meanwhile_stays(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(OSError), new_folder(tmp_path / "model") as unfinished:
        (unfinished / "new").write_text("new")
        (tmp_path / "model" / "foreign").write_text("precious")
    assert contents(tmp_path) == {"model/foreign": "precious"} and os.listdir(tmp_path) == ["model"]


def test_a_result_is_saved_beside_or_in_the_temporary_folder(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("deepgen_npu.files.tempfile.gettempdir", lambda: str(temporary))
    refused: set[Path] = set()

    def save(path):
        if path == tmp_path / "a.png" or path.parent in refused:
            raise OSError(28, "No space left on device")
        path.write_text("saved")

    assert save_somewhere(save, tmp_path / "b.png") == (tmp_path / "b.png", None)
    place, reason = save_somewhere(save, tmp_path / "a.png", ".png")
    assert place.parent == tmp_path and place.suffix == ".png" and reason == "No space left on device"
    refused.add(tmp_path)
    place, reason = save_somewhere(save, tmp_path / "a.png")
    assert place.parent == temporary and place.read_text() == "saved" and reason == "No space left on device"
    refused.add(temporary)
    with pytest.raises(FileError, match=r"a\.png cannot be written \(No space left on device\), and neither"):
        save_somewhere(save, tmp_path / "a.png")
