"""What a hub tells about its files, taken without trust: names, sizes and ids are checked before anything uses them.

A hub, or a mirror in its place, is asked twice, for the list and for each file, and may answer as it likes. So the
list alone gives names, and only such as stay below their folder on every system; the file itself is compared with the
list.
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

from ..checks import shown, whole
from ..errors import DownloadError
from ..files import FileError, read_json, replacing


INDEX_FILE = "model_index.json"
# Only data: a model folder may also hold Python code or pickles.
DATA_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer/*.txt", "README.md", "LICENSE"]
MAX_FILES = 10_000
MAX_FILE_BYTES = 1 << 40
COMMIT = BLOB_ID = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
# No dot in front: our own files beside the model begin with one. Not longer, since the unfinished file's name is.
_PART_OF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # on Windows, in every folder


class BadAnswer(ValueError):
    """A hub told something that cannot be so, or sent something else than it told."""


class HubFile(NamedTuple):
    """A data file as the list of a hub describes it, checked.

    Attributes:
        name: Relative path, with ``/``.
        size: Bytes.
        sha256: Of its content; large files have it, on ModelScope all.
        blob_id: Git's id of its content, for a file without ``sha256``; None when the hub does not tell.
    """

    name: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def id(self) -> str:
        """What its content is to be compared with; of a file that only has a size, that."""
        return self.sha256 or self.blob_id or f"size {self.size}"


def wanted_files(entries: list[dict[str, Any]]) -> list[HubFile]:
    """The data files in a list of a hub; other files, and names that no file of a model has, are passed over.

    Args:
        entries: Objects with "name", "size", "sha256", "blob_id" and "large" (whether the content lies apart
            from the repository, so that the blob id is not that of the content).

    Raises:
        BadAnswer: The list is not of that form, or tells something of a data file that cannot be.
    """
    if len(entries) > MAX_FILES:
        raise BadAnswer(f"the list of files has {len(entries)} entries; at most {MAX_FILES} are wanted")
    nameless = next((entry for entry in entries if not isinstance(entry["name"], str)), None)
    if nameless is not None:
        raise BadAnswer(f"a name in the list of files is {shown(nameless['name'])}; text is wanted")
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
    wanted = f"a whole number from 0 to {MAX_FILE_BYTES}"
    try:
        if not isinstance(entry["size"], int):  # `whole` takes more kinds than JSON has
            raise ValueError(f"the size of {name} is {shown(entry['size'])}; {wanted} is wanted.")
        size = whole(f"the size of {name}", entry["size"], 0, MAX_FILE_BYTES, wanted)
    except ValueError as error:
        raise BadAnswer(str(error).rstrip(".")) from None
    sha256, blob_id = entry["sha256"], entry["blob_id"]
    if sha256 is not None or entry["large"]:
        checked_id(f"the SHA-256 of {name}", sha256, SHA256)
        return HubFile(name, size, sha256)
    # Weights are never taken by their size alone.
    if blob_id is not None or name.endswith(".safetensors"):
        checked_id(f"the blob id of {name}", blob_id, BLOB_ID)
    return HubFile(name, size, None, blob_id)


def checked_id(what: str, value: object, form: re.Pattern[str]) -> str:
    """The value, if it is such an id.

    Raises:
        BadAnswer: It is something else.
    """
    if not isinstance(value, str) or not form.fullmatch(value):
        digits = 64 if form is SHA256 else 40
        raise BadAnswer(f"{what} is {shown(value)}; {digits} hexadecimal digits are wanted")
    return value


def content_id(stream: BinaryIO, file: HubFile, alive: Callable[[], None]) -> str:
    """The id of a content, as `HubFile.id` has it: equal to that, if it is the content that was listed.

    A blob id is git's; stores that put their own in its place have a plain SHA-1 or the begin of a SHA-256 there.

    Args:
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
    """Whether the content is there: a regular file of that size and id that lies, links followed, below ``root``."""
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
    """The path of a file, its folder made.

    Raises:
        DownloadError: A link on the way leads out of ``folder``, or something else is where a folder must be.
    """
    path = folder / file.name
    above = path.parent
    try:
        # Before and after: nothing is made outside, and nothing is written where somebody laid a link meanwhile.
        for _ in range(2):
            if not is_below(above, folder):
                raise DownloadError(
                    f"{above} leads to {above.resolve()}, outside of {folder}. Nothing is written there; "
                    f"remove the link."
                )
            above.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DownloadError(f"{above} is no folder, and {file.name} must go there. Move it away.") from None
    if path.is_dir():
        raise DownloadError(f"{path} is a folder; a file is wanted there. Move it away.")
    return path


def unfinished_path(place: Path, file: HubFile) -> Path:
    """Where the begin of a file waits; of another content under that name, elsewhere."""
    return place.with_name(f"{place.name}.{file.id[:8].replace(' ', '_')}.incomplete")


class Record:
    """Which files in a folder were compared with the list already, so that gigabytes are read again only in need.

    Kept in the folder; a file that was touched since is compared again. A record that cannot be read is an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".download.json"
        self._lock = threading.Lock()
        try:
            self._known = read_json(self._path)
        except (OSError, FileError):
            self._known = {}

    def knows(self, file: HubFile, path: Path) -> bool:
        return self._known.get(file.name) == _seen(file, path)

    def add(self, file: HubFile, path: Path) -> None:
        # Where nothing can be written, the next call compares again.
        with self._lock, contextlib.suppress(OSError):
            self._known[file.name] = _seen(file, path)
            with replacing(self._path) as unfinished:
                unfinished.write_text(json.dumps(self._known, indent=1), encoding="utf-8")


def _seen(file: HubFile, path: Path) -> list[Any]:
    found = path.stat()
    return [file.id, found.st_size, found.st_mtime_ns]
