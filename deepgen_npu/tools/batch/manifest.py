"""The journal of a batch: one line of JSON for each row that was made or could not be. Nothing here needs torch."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...checks import must_be
from ...files import FileError, as_json, naming


OK, ERROR = "ok", "error"


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        row: Number in its table, from 0.
        id: Of the row.
        status: `OK` or `ERROR`.
        files: Of the images, below the output folder.
        seeds: Of the images.
        width, height: Of the images, in pixels.
        seconds: That drawing took; 0 for images that were there already.
        sha256: Of the pixels of each image.
        fingerprint: Of all that decides about them (see `fingerprints`).
        error: Why there are none.
        attempts: How often they were tried; 0 for images that were there already.
        finished: When the line was written, in seconds since 1970.
        node, device: Where they were drawn; card numbers are those of the node.
        kept: What an edit left alone, for each image, where that was asked for.
        references: Sizes, times and hashes of the files of the references, so that they are not read again.
        extra: Columns of the table that are none of ours.
    """

    row: int
    id: str
    status: str
    files: Sequence[str] = ()
    seeds: Sequence[int] = ()
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    sha256: Sequence[str] = ()
    fingerprint: str = ""
    error: str = ""
    attempts: int = 1
    finished: float = 0.0
    node: str = ""
    device: str = ""
    kept: Sequence[Any] = ()
    references: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class Manifest:
    """The journal, which only one process writes.

    Args:
        path: Of the file; what is torn at its end is cut off.

    Attributes:
        torn: Bytes that were cut off.
    """

    def __init__(self, path: Path):
        self.path = path
        self.torn = cut_torn_line(path)
        # Without a buffer: what could not be written is not tried again when the file is closed.
        self._file = path.open("ab", buffering=0)

    def add(self, entry: Entry) -> None:
        """Append a line. That of images is on the disk when this returns."""
        facts = asdict(entry) | {"finished": round(time.time(), 3)}
        facts = {name: value for name, value in facts.items() if value or name in ("row", "attempts")}
        rest = memoryview(as_json(facts).encode("utf-8") + b"\n")
        with naming(self.path):
            while rest:  # a disk that is almost full takes a part of it
                rest = rest[self._file.write(rest) or 0 :]
            if entry.status == OK:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()


def cut_torn_line(path: Path) -> int:
    """Cut off what has no end of line, as a process that was killed leaves it.

    Returns:
        How many bytes that were.
    """
    try:
        with path.open("r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.truncate(end)
            return size - end
    except FileNotFoundError:
        return 0


def read_entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and content of the lines, in their order, without a torn one at the end.

    Raises:
        FileError: For a line that no batch wrote.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
                if not (isinstance(value, dict) and isinstance(value["id"], str) and value["status"] in (OK, ERROR)):
                    raise ValueError
            except (ValueError, KeyError, RecursionError):
                advice = "Remove the line: what it says of images is found in them."
                place = f"line {number} of {path}"
                raise FileError(must_be(place, "a line that batch wrote", line[:80], advice=advice)) from None
            yield offset, value
            offset += len(line)


class Known(NamedTuple):
    """What resuming knows of a row.

    Attributes:
        finished: When its line was written.
        offset: Of the line in its file.
        file: Number of the manifest.
        fingerprint: Its first 16 bytes; none for an error.
    """

    finished: float
    offset: int
    file: int
    fingerprint: bytes

    def is_of(self, mark: str) -> bool:
        """Whether the line has a fingerprint, in its 64 digits."""
        return self.fingerprint == bytes.fromhex(mark[:32])


_PACKED = struct.Struct("<dQI")


class History:
    """The lines of earlier runs. Of 100,000 rows the memory holds some 20 MB; the lines stay in their files.

    Attributes:
        seconds: That images took, in all.
        pixels: Of these images, in all.
        devices: Names of the devices that drew them.
    """

    def __init__(self, paths: Sequence[Path]):
        """Read manifests.

        Args:
            paths: Of all shards. The latest line of an id counts.

        Raises:
            FileError: For a line that no batch wrote.
        """
        self._paths = paths
        self._lines: dict[str, bytes] = {}
        self.seconds, self.pixels = 0.0, 0
        self.devices: set[str] = set()
        for number, path in enumerate(paths):
            for offset, value in read_entries(path):
                self._add(number, offset, value)

    def _add(self, number: int, offset: int, value: Mapping[str, Any]) -> None:
        done = value["status"] == OK
        mark = bytes.fromhex(value["fingerprint"][:32]) if done else b""
        if done and value.get("seconds"):
            self.seconds += value["seconds"]
            self.pixels += value["width"] * value["height"] * len(value["files"])
            self.devices.add(value.get("device", ""))
        finished = float(value.get("finished", 0))
        before = self.get(value["id"])
        # Within a file their order is certain, whatever the clock was set to.
        if before is None or before.file == number or before.finished <= finished:
            self._lines[value["id"]] = _PACKED.pack(finished, offset, number) + mark

    def get(self, name: str) -> Known | None:
        """What is known of a row.

        Args:
            name: Its id.
        """
        packed = self._lines.get(name)
        if packed is None:
            return None
        finished, offset, file = _PACKED.unpack_from(packed)
        return Known(finished, offset, file, packed[_PACKED.size :])

    def line(self, known: Known) -> dict[str, Any]:
        """All that the line of a row says."""
        with self._paths[known.file].open("rb") as file:
            file.seek(known.offset)
            return json.loads(file.readline())
