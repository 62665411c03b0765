"""Names of the files of a row, by its id."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Any

from ...checks import must_be


LONGEST = 200
"""Bytes of an id: with a number, an ending and the name of an unfinished file it is within the 255 of file systems."""

RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10))}
"""What Windows does not take for a file name, whatever its ending."""


def check_id(value: Any) -> str:
    """An id that can be a file name on every system.

    Raises:
        ValueError: Naming what it must be.
    """
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    requirement = f"a file name of at most {LONGEST} bytes, without separators and without a dot at either end"
    if not isinstance(name, str) or not _is_file_name(name):
        raise ValueError(must_be("id", requirement, value))
    return name


def _is_file_name(name: str) -> bool:
    if not name.isprintable() or re.search(r'[/\\:*?"<>|]', name) or name != name.strip(" ."):
        return False
    if not name or name.partition(".")[0].lower() in RESERVED:
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST


class TakenNames:
    """Ids that rows have, and with them the names of their files, whatever the case of letters."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._several: dict[str, int] = {}

    def take(self, name: str, count: int, row: int) -> int | None:
        """Give an id to a row, unless another row has it or one of its files: then the number of that row.

        Args:
            name: The id.
            count: Of the row's images.
            row: Its number.
        """
        own = name.casefold()
        other = self._rows.get(own)
        if other is None:
            other = self._one_of_several(own) if count == 1 else self._one_alone(own, count)
        if other is None:
            self._rows[own] = row
            if count > 1:
                self._several[own] = count
        return other

    def _one_of_several(self, own: str) -> int | None:
        """The row that has this as one of its numbered files."""
        stem, _, digits = own.rpartition("_")
        count = self._several.get(stem, 0)
        return self._rows[stem] if digits in map(str, range(count)) else None

    def _one_alone(self, own: str, count: int) -> int | None:
        """A row that has one of these numbered files as its only one."""
        names = (f"{own}_{number}" for number in range(count))
        return next((self._rows[name] for name in names if name in self._rows and name not in self._several), None)


def image_files(name: str, count: int) -> list[PurePosixPath]:
    """Where the images of a row are, below the output folder.

    No folder has all of them: two digits of a hash of the id make 256.

    Args:
        name: The id.
        count: Of the row's images.
    """
    folder = PurePosixPath("images") / hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:2]
    if count == 1:
        return [folder / f"{name}.png"]
    return [folder / f"{name}_{number}.png" for number in range(count)]
