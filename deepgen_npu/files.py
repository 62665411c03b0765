"""Files in and out: read without trust, written whole or not at all. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# The largest JSON file of the published folder, tokenizer.json, has 7 MB.
MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 64


class FileError(ValueError):
    """A file that cannot be read, or holds something else than it should. The message names the file."""


def open_regular(path: Path, buffering: int = -1) -> Any:
    """A regular file, opened to read bytes. It never waits, also where a named pipe takes the file's place meanwhile.

    Raises:
        FileError: When it is no regular file.
        OSError: When there is none, or it cannot be opened.
    """
    _require_regular(path, os.stat(path).st_mode)  # a device is not even opened
    # Where the system has them; Python adds O_CLOEXEC.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb", buffering=buffering)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file; a named pipe or a device, which may never end, is not read.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        FileError: When it is no regular file, is larger than ``max_bytes``, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            # What has grown since is not read, either.
            content = file.read(max_bytes + 1) if size <= max_bytes else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if max(size, len(content)) > max_bytes:
        raise FileError(f"{path} has {max(size, len(content))} bytes; at most {max_bytes} are wanted.")
    return content


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is {kind_of(mode)}; a file is wanted.")


def kind_of(mode: int) -> str:
    """What a ``st_mode`` that is not a regular file's says, in words."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        FileError: When it is no JSON object, when it names a key twice, nests deeper than `MAX_JSON_DEPTH` or holds
            NaN or Infinity, and as `read_bytes`.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object in JSON text, with the bounds of `read_json`; ``where`` names it in errors."""
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=_object)
    # ValueError covers bytes that are not UTF-8, broken JSON and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise FileError(f"{where} is not valid JSON ({reason}).") from None
    if not isinstance(value, dict):
        raise FileError(f"{where} holds {type(value).__name__}; a JSON object is wanted.")
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise FileError(f"{where} is not valid JSON (it is nested deeper than {MAX_JSON_DEPTH} levels).")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it has the key {twice[:100]!r} twice")
    return made


def _deeper_than(value: object, levels: int) -> bool:
    row: list[object] = [value]
    for _ in range(levels):
        row = [
            child
            for parent in row
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not row:
            return False
    return any(isinstance(one, (dict, list)) for one in row)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; it takes the place of ``path`` when the block ends well, else it is removed.

    The name is random, so that nobody can lay a link in its way, of fixed length, so that it is not longer than the
    file system allows where ``path`` is not, and ends like ``path``, since writers choose a format by that.
    """
    unfinished = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class Rehearsed(Exception):
    """Ends a writing that was only tried, so that nothing of it remains."""


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder that is there while the block runs; of what was made for it, nothing empty remains."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:  # the deepest first
            with contextlib.suppress(OSError):
                place.rmdir()


def require_room(folder: Path, nbytes: int, option: str) -> None:
    """Refuse a folder whose file system has not that many bytes free.

    Raises:
        FileError: Naming the folder and both numbers.
    """
    total, _, free = shutil.disk_usage(folder)
    if total > 0 and free < nbytes:  # some file systems tell nothing
        raise FileError(
            f"{option} {folder} has {free / 2**20:.1f} MiB free; {nbytes / 2**20:.1f} MiB may be needed.".strip()
        )


def as_json(value: object, indent: int | None = None) -> str:
    """JSON that any encoding takes: what is no text, as in file names that are not UTF-8, is escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace").decode()


def reason_of(error: Exception) -> str:
    """What an error of the system or an encoder says, without numbers and names that say nothing."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split()).rstrip(".")
