"""Files in and out: read without trust, written completely or not at all. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .checks import Named, must_be
from .formatting import format_bytes


MAX_JSON_BYTES = 64 << 20
"""The largest JSON file of the published folder, tokenizer.json, has 7 MB."""
MAX_JSON_DEPTH = 64


class FileError(ValueError):
    """A file that cannot be read or written, or does not contain what it should. The message names the file."""


def open_regular(path: Path, buffering: int = -1) -> Any:
    """Open a regular file to read bytes. It never blocks, even if a named pipe takes the file's place meanwhile.

    Args:
        path: The file.
        buffering: As for `open`.

    Raises:
        FileError: When it is not a regular file.
        OSError: When it does not exist or cannot be opened.
    """
    _require_regular(path, os.stat(path).st_mode)  # a device is not even opened
    # Not every system has both; Python adds O_CLOEXEC.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb", buffering=buffering)
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file. Named pipes and devices, which may never end, are not read.

    Args:
        path: The file.
        max_bytes: The largest size that is accepted.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        FileError: When it is not a regular file, is larger than ``max_bytes``, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            # One byte more shows that it has grown since.
            content = file.read(max_bytes + 1) if size <= max_bytes else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if max(size, len(content)) > max_bytes:
        found = Named(format_bytes(max(size, len(content))))
        raise FileError(must_be(f"{path}", f"a file of at most {format_bytes(max_bytes)}", found))
    return content


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise FileError(must_be(f"{path}", "a regular file", Named(kind_of(mode))))


def kind_of(mode: int) -> str:
    """The kind of thing that a ``st_mode`` describes, in words, where it is not a regular file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        max_bytes: The largest size that is accepted.

    Raises:
        FileNotFoundError: When there is nothing of that name.
        FileError: When it is not a JSON object, has a key twice, nests deeper than `MAX_JSON_DEPTH` or contains NaN
            or Infinity, and as `read_bytes`.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object in JSON text, with the limits of `read_json`.

    Args:
        content: The text, in UTF-8.
        where: What errors call it.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse, object_pairs_hook=_object)
    # ValueError covers bytes that are not UTF-8, broken JSON and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise FileError(f"{where} is not valid JSON ({reason}).") from None
    if not isinstance(value, dict):
        raise FileError(must_be(where, "a JSON object", Named(type(value).__name__)))
    if deeper_than(value, MAX_JSON_DEPTH):
        raise FileError(f"{where} is not valid JSON (it is nested deeper than {MAX_JSON_DEPTH} levels).")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it contains {constant}, which is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"it has the key {twice[:100]!r} twice")
    return made


def deeper_than(value: object, levels: int) -> bool:
    """Whether lists and dicts nest deeper than so many levels."""
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
def naming(path: Path) -> Iterator[None]:
    """A block whose errors of the system name this file where they name none: those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write to. It replaces ``path`` if the block ends well, else it is removed.

    Its name is random, so that nobody can put a link in its place; of fixed length, so that it is not too long for the
    file system where ``path`` is not; and ends like ``path``, since writers choose a format by that.
    """
    unfinished = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside ``folder`` to fill. It becomes ``folder`` if the block ends well, else it is removed.

    Its name is hidden, random and of fixed length, as in `replacing`.

    Args:
        folder: New, or an empty folder. Links are followed.
        replace: Whether to replace a folder that has content. It comes back if the new one cannot take its place.

    Raises:
        FileError: When there is something else of that name.
    """
    folder = Path(os.path.realpath(folder))
    if os.path.lexists(folder) and not (folder.is_dir() and (replace or not any(folder.iterdir()))):
        raise FileError(f"{folder} already exists. Name a new or empty folder.")
    unfinished = folder.parent / f".{secrets.token_hex(8)}"
    with made(folder.parent):
        try:
            unfinished.mkdir()
            yield unfinished
            if folder.is_dir() and not replace:
                folder.rmdir()  # fails where something has come into it meanwhile
            _move_to(folder, unfinished)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _move_to(folder: Path, unfinished: Path) -> None:
    if not folder.is_dir():
        unfinished.rename(folder)
        return
    earlier = unfinished.with_name(f"{unfinished.name}.earlier")
    folder.rename(earlier)
    try:
        unfinished.rename(folder)
    except BaseException:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier)


class Rehearsed(Exception):
    """Ends a block that only tried to write, so that nothing of it remains."""


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder that exists while the block runs. Folders that were created for it are removed again if empty."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:  # the deepest first
            with contextlib.suppress(OSError):
                place.rmdir()


def save_somewhere(save: Callable[[Path], object], path: Path, ending: str = "") -> tuple[Path, str | None]:
    """Save a result to ``path``, or to a new name where that fails: in the same folder, or in the temporary one.

    Args:
        save: Called with the path to write to.
        path: A file or folder.
        ending: Of the new name, ``deepgen_01234567.png``.

    Returns:
        Where the result is, and why it is not at ``path``; None if it is.

    Raises:
        FileError: When it could not be written anywhere.
    """
    try:
        save(path)
        return path, None
    except Exception as error:  # encoders raise anything
        reason = reason_of(error)
    for folder in (lambda: path.parent, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(Exception):
            place = folder() / f"deepgen_{secrets.token_hex(4)}{ending}"
            save(place)
            return place, reason
    raise FileError(f"{path} cannot be written ({reason}), and neither can the temporary folder: the result is lost.")


def require_room(folder: Path, nbytes: int, option: str) -> None:
    """Refuse a folder whose file system has fewer bytes free.

    Args:
        folder: An existing folder.
        nbytes: Needed at most.
        option: Of the command line, for the error: ``--save``.

    Raises:
        FileError: Naming the folder and both numbers.
    """
    total, _, free = shutil.disk_usage(folder)
    if total > 0 and free < nbytes:  # some file systems report nothing
        where = f"{option} {folder}".strip()
        raise FileError(f"{where} has {format_bytes(free)} free, but up to {format_bytes(nbytes)} are needed.")


def as_json(value: object, indent: int | None = None) -> str:
    """JSON that any encoding can represent: what is not text, as in file names that are not UTF-8, is escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace").decode()


def reason_of(error: Exception) -> str:
    """The message of an error of the system or an encoder, without its number and without a full stop."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split()).rstrip(".")
