"""The output folder of a batch: locked while it is written, never with half of an image. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image

from ...errors import UsageError
from ...files import FileError, as_json, made, naming, reason_of, replacing
from ...image_files import encoded, read_parameters
from .shards import WHOLE, Shard


_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.(png|json|jpg)")
"""Names that `files.replacing` gives while it writes."""

_PATIENCE = 0.5
"""Seconds until a lock counts as one."""

_LOCKED_BYTE = 1 << 30
"""Of the lock on Windows, where a locked byte cannot be read: far behind the content."""


class OutputFolder:
    """Where images, manifest and facts of a run are.

    Attributes:
        manifest: Journal of this shard (see `manifest`).
        facts: ``run.json`` of this shard.
    """

    def __init__(self, path: Path, shard: Shard = WHOLE):
        self.path, self.shard = path, shard
        self.manifest = path / shard.name("manifest", ".jsonl")
        self.facts = path / shard.name("run", ".json")
        self._lock = path / shard.name(".lock", "")

    def manifests(self) -> list[Path]:
        """Of all shards, in a fixed order."""
        return sorted(self.path.glob("manifest*.jsonl"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes here meanwhile. The lock of a process that has ended is no lock.

        Raises:
            UsageError: When another batch works here.
            FileError: When it cannot be a folder.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(made(self.path))
                file = self._take()
            except OSError as error:
                raise FileError(f"--output {self.path} cannot be written: {reason_of(error)}.") from None
            stack.callback(self._release, file)
            self._require_no_other_shards()
            yield

    def _require_no_other_shards(self) -> None:
        """Two halves and three thirds would make the same rows at the same time."""
        ending = f"-of-{self.shard.count}" if self.shard.count > 1 else ".lock"
        for path in self.path.glob(".lock*"):
            if not path.name.endswith(ending) and _is_held(path):
                raise UsageError(
                    f"In {self.path}, {path.name} is the lock of a batch with another number of shards: wait for it, "
                    "or remove that file if it has ended."
                )

    def _release(self, file: IO[str]) -> None:
        # Before it is let go, so that nobody else can have it already. Windows removes no open file; what is left
        # there is the lock of a process that has ended.
        with contextlib.suppress(OSError):
            self._lock.unlink()
        file.close()

    def _take(self) -> IO[str]:
        while True:
            file = os.fdopen(os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o644), "r+")
            if (mine := _lock_soon(file)) is False:
                holder = _holder(file)
                file.close()
                raise UsageError(f"{self.path} is in use by {holder or 'another batch'}: wait for it.")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._lock)):
                    break
            file.close()  # another batch has ended meanwhile, and removed it
        # Locks of the system do not reach other machines everywhere, and some file systems have none.
        holder = _holder(file)
        if holder and (mine is None or _is_of_another_machine(holder)):
            file.close()
            raise UsageError(
                f"{self.path} is in use by {holder}: wait for it, or remove {self._lock} if it has ended."
            )
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        return file

    def clean(self) -> None:
        """Remove what killed processes left unfinished, unless another shard works here. Only while it is locked."""
        os.utime(self._lock)
        if any(_is_held(path) for path in self.path.glob(".lock*") if path != self._lock):
            return
        # Another shard may begin meanwhile: what it writes is newer than what we have just touched.
        begun = self._lock.stat().st_mtime_ns
        for folder in (self.path, *self.path.glob("images/*")):
            for file in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    if _UNFINISHED.fullmatch(file.name) and file.stat().st_mtime_ns < begun:
                        file.unlink()

    def save_image(self, image: Image.Image, name: PurePosixPath, parameters: Mapping[str, Any]) -> None:
        """Write a PNG whole or not at all; it is on the disk when this returns.

        Raises:
            OSError: When the disk is full, or nothing can be written there: the fault of the run, not of a row.
        """
        target = self.path / name
        content = encoded(image, "PNG", parameters)
        target.parent.mkdir(parents=True, exist_ok=True)
        with naming(target), replacing(target) as unfinished, unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def stored(self, name: PurePosixPath) -> dict[str, Any] | None:
        """What the PNG of an image says about how it was made; None if there is no such file, or a damaged one."""
        try:
            return read_parameters(self.path / name)
        except FileNotFoundError:
            return None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        with naming(self.facts), replacing(self.facts) as unfinished:
            unfinished.write_text(as_json(facts, indent=2) + "\n", encoding="utf-8")


def _lock(file: IO[str]) -> bool | None:
    """Lock an open file until it is closed or its process ends.

    Returns:
        False when another process has it, None when the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    except OSError:  # Lustre, where it is mounted without flock
        return None
    return True


def _lock_soon(file: IO[str]) -> bool | None:
    """`_lock`, which a shard that begins at the same time may hold for a moment in `_is_held`."""
    end = time.monotonic() + _PATIENCE
    while (mine := _lock(file)) is False and time.monotonic() < end:
        time.sleep(0.05)
    return mine


def _is_held(path: Path) -> bool:
    """Whether the process that has written a lock works still, or may: of other machines nothing is known."""
    try:
        with path.open("r+") as file:
            mine, holder = _lock(file), _holder(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    if mine:
        return _is_of_another_machine(holder)
    return mine is False or bool(holder)


def _holder(file: IO[str]) -> str:
    """Who has written a lock; empty if nobody has."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return f"process {int(found['pid'])} of {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_of_another_machine(holder: str) -> bool:
    return bool(holder) and not holder.endswith(f" of {socket.gethostname()}")
