"""Reading without trust, and writing whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from platforms import not_on_windows

from deepgen_npu.files import FileError, open_regular, read_json, replacing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "a JSON object is wanted"),
        (b'{"a": ', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
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
    with pytest.raises(FileError, match="102 bytes"):
        read_json(tmp_path / "large.json", max_bytes=100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
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
    assert errors == [f"{tmp_path / 'pipe'} is a named pipe; a file is wanted."]
