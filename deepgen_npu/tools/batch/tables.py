"""Tables of rows in files: JSON lines, CSV, TSV and Parquet, read one row at a time. Nothing here needs torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checks import Named, must, must_be
from ...errors import UsageError
from ...files import MAX_JSON_DEPTH, FileError, deeper_than, open_regular
from ...formatting import command


KINDS = {".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
"""Formats by the ending of the name, in either case."""

MAX_LINE = 1 << 20
"""Characters of a row; more is not a prompt, and one line without an end must not fill the memory."""

NESTED = f"the line is nested deeper than {MAX_JSON_DEPTH} levels"

SEPARATORS = {",": "commas", "\t": "tabs"}
"""What stands between the columns of CSV and TSV. In some countries, Excel writes semicolons."""

UTF_8 = "Save it as UTF-8; in Excel the format is called CSV UTF-8."


_PARQUET_ROWS = 64
"""Read at once: some tables have whole images in their cells."""


@dataclass(frozen=True)
class Broken:
    """What a line has instead of a row."""

    reason: str


Cells = dict[str, Any]


def read_table(path: Path) -> Iterator[Cells | Broken]:
    """The rows of a file by the names of their columns; a line that is none is `Broken`, and the next is read.

    Args:
        path: Its ending says what it is.

    Raises:
        FileError: When it cannot be read, or is none of `KINDS`.
        UsageError: When a library is missing.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise FileError(must(str(path), f"end in {', '.join(KINDS)}", path.name))
    if kind == "parquet":
        yield from _parquet(path)
        return
    try:
        # With or without the mark that programs of Windows put before UTF-8.
        newline = None if kind == "json" else ""
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline) as file:
            yield from _json(file) if kind == "json" else _separated(path, file, "\t" if kind == "tsv" else ",")
    except UnicodeDecodeError:
        raise FileError(must_be(str(path), "text in UTF-8", Named("another encoding"), advice=UTF_8)) from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None


def _json(file: Any) -> Iterator[Cells | Broken]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
                pass
            yield Broken(f"the line has more than {MAX_LINE} characters")
        elif line.strip():
            yield _object(line)


def _object(line: str) -> Cells | Broken:
    try:
        value = json.loads(line)
    except ValueError as error:
        return Broken(f"the line is no JSON ({error})")
    except RecursionError:
        return Broken(NESTED)
    if not isinstance(value, dict):
        return Broken(f"the line is a JSON {type(value).__name__}, not an object")
    return Broken(NESTED) if deeper_than(value, MAX_JSON_DEPTH) else value


def _separated(path: Path, file: Any, delimiter: str) -> Iterator[Cells | Broken]:
    csv.field_size_limit(MAX_LINE)
    # Strict: a quote that nothing closes would silently take all further rows into its cell.
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise FileError(f"{path} cannot be read: {error}.") from None
    if not any(names):
        raise FileError(must(str(path), "begin with the names of its columns", names))
    if len([name for name in names if name]) == 1 and re.search(r"[;\t,]", names[0]):
        advice = "Save it with that separator."
        raise FileError(must(str(path), f"have columns separated by {SEPARATORS[delimiter]}", names[0], advice=advice))
    if twice := [name for number, name in enumerate(names) if name and name in names[:number]]:
        raise FileError(must(str(path), "have each column once", twice))
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Broken(f"the line cannot be read ({error})")
            continue
        if cells is None:
            return
        if not any(cells):
            continue
        if len(cells) > len(names):
            yield Broken(f"the line has {len(cells)} cells, but there are {len(names)} columns")
            continue
        # An empty cell is no value.
        yield {name: cell for name, cell in zip(names, cells, strict=False) if name and cell != ""}


def _parquet(path: Path) -> Iterator[Cells]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"Parquet files need pyarrow:{command('pip install pyarrow')}".rstrip()) from None
    try:
        with parquet.ParquetFile(path) as table:
            for part in table.iter_batches(_PARQUET_ROWS):
                for row in part.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None}
    except (ArrowException, OSError) as error:
        raise FileError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())}).") from None
