"""What a hub lists about its files, without trust: names, sizes and ids are checked before anything uses them.

A hub, or a mirror in its place, answers twice, with the list and with each file, and may answer anything. So only the
list gives names, and only such as stay below their folder on every system; the file itself is compared with the list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..checks import Named, integer, must, must_be
from ..errors import DownloadError
from ..files import FileError, read_json, replacing


INDEX_FILE = "model_index.json"
"""The file that makes a folder a model."""

DATA_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer/*.txt", "README.md", "LICENSE"]
"""Only data: a model folder may also contain Python code or pickles."""

MAX_FILES = 10_000
"""Most entries of a hub's list."""

MAX_FILE_BYTES = 1 << 40
"""Largest size that a list may give."""

COMMIT = BLOB_ID = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

_PART_OF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")
"""Without a leading dot, which our own files next to the model have; short enough for the ending of an unfinished
file."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows reserves in every folder."""


class BadAnswer(ValueError):
    """A hub listed something impossible, or sent something else than it listed."""


class HubFile(NamedTuple):
    """A data file as a hub lists it, checked.

    Attributes:
        name: Relative path, with ``/``.
        size: Bytes.
        sha256: Of its content; for large files, on ModelScope for all.
        blob_id: Git's id of its content, for a file without ``sha256``; None when the hub does not list it.
    """

    name: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def id(self) -> str:
        """What its content is compared with: an id, or the size of a file that has none."""
        return self.sha256 or self.blob_id or f"size {self.size}"


def checked_files(entries: list[dict[str, Any]]) -> list[HubFile]:
    """The data files in a list of a hub; other files, and names that no file of a model has, are skipped.

    Args:
        entries: Objects with "name", "size", "sha256", "blob_id" and "large" (whether the content is stored
            outside of the repository, so that the blob id is not that of the content).

    Raises:
        BadAnswer: The list is not of that form, or describes a data file that is not possible.
    """
    if len(entries) > MAX_FILES:
        raise BadAnswer(must("the list of files", f"have at most {MAX_FILES} entries", len(entries)))
    nameless = next((entry for entry in entries if not isinstance(entry["name"], str)), None)
    if nameless is not None:
        raise BadAnswer(must_be("a name in the list of files", "text", nameless["name"]))
    files = [_checked_file(entry) for entry in entries if is_data_file(entry["name"])]
    folders = {part.casefold(): file.name for file in files for part in _folders(file.name)}
    seen: dict[str, str] = {}
    for file in files:
        key = file.name.casefold()
        other = seen.get(key) or folders.get(key)
        if other:
            raise BadAnswer(f"{file.name} and {other} are both listed, and would be one file on some systems")
        seen[key] = file.name
    return files


def is_data_file(name: object) -> bool:
    """Whether it is a name that stays below its folder on every system, of a kind that a model needs."""
    if not isinstance(name, str) or len(name) > 400:
        return False
    for part in name.split("/"):
        if not _PART_OF_NAME.fullmatch(part) or part[-1] in ". " or _DEVICES.fullmatch(part):
            return False
    return any(fnmatchcase(name, pattern) for pattern in DATA_FILES)


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    yield from ("/".join(parts[:count]) for count in range(1, len(parts)))


def _checked_file(entry: dict[str, Any]) -> HubFile:
    name = entry["name"]
    requirement = f"an integer from 0 to {MAX_FILE_BYTES}"
    try:
        if not isinstance(entry["size"], int):  # `whole` takes more types than JSON has
            raise ValueError(must_be(f"the size of {name}", requirement, entry["size"]))
        size = integer(f"the size of {name}", entry["size"], 0, MAX_FILE_BYTES, requirement)
    except ValueError as error:
        raise BadAnswer(str(error)) from None
    sha256, blob_id = entry["sha256"], entry["blob_id"]
    if sha256 is not None or entry["large"]:
        checked_id(f"the SHA-256 of {name}", sha256, SHA256)
        return HubFile(name, size, sha256)
    # Weights are never accepted by their size alone.
    if blob_id is not None or name.endswith(".safetensors"):
        checked_id(f"the blob id of {name}", blob_id, BLOB_ID)
    return HubFile(name, size, None, blob_id)


def checked_id(name: str, value: object, form: re.Pattern[str]) -> str:
    """The value, if it is an id of that form.

    Raises:
        BadAnswer: It is something else.
    """
    if not isinstance(value, str) or not form.fullmatch(value):
        raise BadAnswer(must_be(name, f"{64 if form is SHA256 else 40} hexadecimal digits", value))
    return value


def content_id(stream: BinaryIO, file: HubFile, alive: Callable[[], None]) -> str:
    """The id of a content, equal to `HubFile.id` if it is the content that was listed.

    A blob id is git's; stores that replace it with their own use a plain SHA-1 or the start of a SHA-256.

    Args:
        stream: The content.
        file: As it was listed.
        alive: Called for every piece; it may raise to stop.
    """
    size = stream.seek(0, os.SEEK_END)
    if file.sha256:
        digests = [hashlib.sha256()]
    elif file.blob_id:
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        digests = [git, hashlib.sha1(usedforsecurity=False), hashlib.sha256()]
    else:
        return f"size {size}"
    stream.seek(0)
    while piece := stream.read(1 << 20):
        alive()
        for digest in digests:
            digest.update(piece)
    found = [digest.hexdigest()[: len(file.id)] for digest in digests]
    return file.id if file.id in found else found[0]


def is_intact(path: Path, file: HubFile, root: Path, record: Record, alive: Callable[[], None]) -> bool:
    """Whether there is a regular file of that size and id which lies, links followed, below ``root``."""
    try:
        if not path.is_file() or not is_below(path, root) or path.stat().st_size != file.size:
            return False
        if record.knows(file, path):
            return True
        with path.open("rb") as stream:
            return content_id(stream, file, alive) == file.id
    except OSError:
        return False


def is_below(path: Path, root: Path) -> bool:
    """Whether a path, links followed, lies in a folder."""
    return path.resolve().is_relative_to(root.resolve())


def place_for(file: HubFile, folder: Path) -> Path:
    """The path of a file, whose folder is made.

    Raises:
        DownloadError: A link on the way leads out of ``folder``, or something else is in the place of a folder.
    """
    path = folder / file.name
    above = path.parent
    try:
        # Before and after: nothing is made outside, and nothing is written where a link was placed meanwhile.
        for _ in range(2):
            if not is_below(above, folder):
                raise DownloadError(
                    f"{above} leads to {above.resolve()}, outside of {folder}. Nothing was written; remove the link."
                )
            above.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DownloadError(f"{above} must be a folder, for {file.name}. Move it away.") from None
    if path.is_dir():
        raise DownloadError(must_be(str(path), "a file", Named("a folder"), advice="Move it away."))
    return path


def unfinished_path(place: Path, file: HubFile) -> Path:
    """Where the start of a file is kept; another content of that name has another path."""
    return place.with_name(f"{place.name}.{file.id[:8].replace(' ', '_')}.incomplete")


class Record:
    """Which files in a folder were compared with the list already, so that gigabytes are not read again.

    Stored in the folder; a file that was touched since is compared again. An unreadable record counts as empty.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".download.json"
        self._lock = threading.Lock()
        try:
            self._known = read_json(self._path)
        except (OSError, FileError):
            self._known = {}

    def knows(self, file: HubFile, path: Path) -> bool:
        """Whether the file was compared and not touched since."""
        return self._known.get(file.name) == _fingerprint(file, path)

    def add(self, file: HubFile, path: Path) -> None:
        """Store that a file was compared."""
        # Where nothing can be written, the next call compares again.
        with self._lock, contextlib.suppress(OSError):
            self._known[file.name] = _fingerprint(file, path)
            with replacing(self._path) as unfinished:
                unfinished.write_text(json.dumps(self._known, indent=1), encoding="utf-8")


def _fingerprint(file: HubFile, path: Path) -> list[Any]:
    found = path.stat()
    return [file.id, found.st_size, found.st_mtime_ns]
