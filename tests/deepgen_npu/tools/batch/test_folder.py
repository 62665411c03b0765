"""The output folder: one batch at a time, whole images, and nothing left of killed processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import pytest
from batch_files import picture
from platforms import not_on_windows

from deepgen_npu.errors import UsageError
from deepgen_npu.files import FileError
from deepgen_npu.image_files import open_image
from deepgen_npu.tools.batch import folder as module
from deepgen_npu.tools.batch.folder import OutputFolder, Shard


ROOT = Path(__file__).parents[4]
NAME = PurePosixPath("images/ca/a.png")
HOLD = """
import sys
from pathlib import Path
from deepgen_npu.tools.batch.folder import OutputFolder, Shard
with OutputFolder(Path(sys.argv[1]), Shard.parse(sys.argv[2])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Locks a folder in a process of its own."""
    running = []

    def hold(folder: Path, shard: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder), shard]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "a/b", "1/2/3", "0/1000000000"])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match=r"--shard must be i/n with i from 0 to n - 1, got "):
        Shard.parse(text)


def test_shards_have_each_row_once():
    shards = [Shard.parse(f"{index}/3") for index in range(3)]
    for number in range(10):
        assert sum(shard.has(number) for shard in shards) == 1
    assert [shard.name("manifest", ".jsonl") for shard in (Shard(), *shards[:1])] == [
        "manifest.jsonl",
        "manifest.0-of-3.jsonl",
    ]


def test_a_lock_holds_others_off_until_its_process_has_ended(tmp_path, hold):
    """Killed, it leaves the file of the lock behind, which is no lock any more."""
    out = tmp_path / "out"
    process = hold(out, "0/1")
    words = rf"out is in use by process {process.pid} of {socket.gethostname()}: wait for it\.$"
    with pytest.raises(UsageError, match=words), OutputFolder(out).locked():
        raise AssertionError
    process.kill()
    process.wait()
    assert os.listdir(out) == [".lock"]
    with OutputFolder(out).locked():
        assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(out) == []
    with OutputFolder(tmp_path / "new" / "out").locked():
        assert (tmp_path / "new" / "out" / ".lock").exists()
    assert not (tmp_path / "new").exists(), "nothing was written"


def test_shards_of_another_number_are_others(tmp_path, hold):
    """They would make the same rows. Those of the same number work side by side."""
    process = hold(tmp_path, "1/3")
    for shard in (Shard(), Shard(0, 2), Shard(1, 33)):
        words = r"\.lock\.1-of-3 is the lock of a batch with another number of shards: wait for it, or remove"
        with pytest.raises(UsageError, match=words), OutputFolder(tmp_path, shard).locked():
            raise AssertionError
    with OutputFolder(tmp_path, Shard(0, 3)).locked(), OutputFolder(tmp_path, Shard(2, 3)).locked():
        assert len(list(tmp_path.glob(".lock*"))) == 3
    process.kill()
    process.wait()
    with OutputFolder(tmp_path).locked(), pytest.raises(UsageError), OutputFolder(tmp_path, Shard(0, 2)).locked():
        raise AssertionError
    assert os.listdir(tmp_path) == [".lock.1-of-3"], "of a process that has ended, and no lock any more"


@not_on_windows("it removes no open file")
def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Another batch ends between opening its lock and locking it."""
    true_lock = module._lock
    calls = []

    def lock(file):
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        return true_lock(file)

    monkeypatch.setattr(module, "_lock", lock)
    with OutputFolder(tmp_path).locked():
        assert len(calls) == 2 and (tmp_path / ".lock").exists()


def test_of_another_machine_nothing_is_known(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"host": "another", "pid": 5}))
    words = rf"in use by process 5 of another: wait for it, or remove {lock} if it has ended\."
    with pytest.raises(UsageError, match=words), OutputFolder(tmp_path).locked():
        raise AssertionError
    lock.write_text("not what batch writes")
    with OutputFolder(tmp_path).locked():
        pass
    assert not lock.exists()


@not_on_windows("its locks are others")
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """The content of the file is all there is."""
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        OutputFolder(tmp_path).locked(),
        pytest.raises(UsageError, match=rf"process {os.getpid()} of .* or remove .*\.lock if it has ended"),
        OutputFolder(tmp_path).locked(),
    ):
        raise AssertionError
    assert not (tmp_path / ".lock").exists()


def test_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with (
            pytest.raises(FileError, match=r"^--output .* cannot be written: "),
            OutputFolder(tmp_path / place).locked(),
        ):
            raise AssertionError


def test_what_killed_processes_left_is_removed(tmp_path, hold):
    """But not while another shard works, nor what one that has begun meanwhile writes."""
    old = time.time() - 100
    left = [".01234567.json", "images/aa/.89abcdef.png", ".aaaaaaaa.jpg"]
    others = ["images/aa/a.png", "images/aa/.hidden.png", ".0123456.png", "manifest.jsonl", "notes"]
    for name in (*left, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (old, old))

    def there() -> set[str]:
        found = (path for path in tmp_path.rglob("*") if not path.is_dir() and not path.name.startswith(".lock"))
        return {path.relative_to(tmp_path).as_posix() for path in found}

    own = OutputFolder(tmp_path, Shard(0, 2))
    process = hold(tmp_path, "1/2")
    with own.locked():
        own.clean()
        assert there() == {*left, *others}
        process.send_signal(signal.SIGTERM)
        process.wait()
        new = tmp_path / "images" / "aa" / ".00000000.png"
        new.write_text("x")
        own.clean()
        assert there() == {*others, "images/aa/.00000000.png"}
    (tmp_path / ".lock.1-of-2").write_text(json.dumps({"host": "another", "pid": 5}))
    os.utime(new, (old, old))
    with own.locked():
        own.clean()
        assert new.exists(), "that machine may be writing it"


def test_an_image_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path)
    folder.save_image(picture("a", 1), NAME, {"batch": {"id": "\u732b"}})
    assert open_image(tmp_path / NAME).tobytes() == picture("a", 1).tobytes()
    assert folder.stored(NAME) == {"batch": {"id": "\u732b"}}

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    synced = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            folder.save_image(picture("b", 1), NAME, {})
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    assert os.listdir(tmp_path / "images" / "ca") == ["a.png"]
    assert open_image(tmp_path / NAME).tobytes() == picture("a", 1).tobytes()
    folder.save_image(picture("b", 1), NAME, {})
    assert synced == [(tmp_path / NAME).stat().st_size], "it is on the disk"


def test_what_an_image_says(tmp_path):
    folder = OutputFolder(tmp_path)
    assert folder.stored(NAME) is None
    (tmp_path / NAME).parent.mkdir(parents=True)
    folder.save_image(picture("a", 1), NAME, {"a": 1})
    content = (tmp_path / NAME).read_bytes()
    for damaged in (b"", b"text", content[:-300], content[:40]):
        (tmp_path / NAME).write_bytes(damaged)
        assert folder.stored(NAME) is None
    picture("a", 1).save(tmp_path / NAME)
    assert folder.stored(NAME) == {}
    folder.save_image(picture("a", 1), NAME, [1])  # pyright: ignore
    assert folder.stored(NAME) == {}


def test_facts_of_a_shard(tmp_path):
    folder = OutputFolder(tmp_path, Shard(1, 2))
    folder.write_facts({"a": "\u732b\udcff"})
    assert json.loads((tmp_path / "run.1-of-2.json").read_text(encoding="utf-8")) == {"a": "\u732b\udcff"}
    assert os.listdir(tmp_path) == ["run.1-of-2.json"]
