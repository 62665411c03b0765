"""Damage to a checkpoint's files, for property-based tests: any value of any JSON file, any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


_MARK = "\x00here\x00"


def linked(source: Path, target: Path) -> Path:
    """A checkpoint whose files are links to those of another: made quickly, and any of them can be replaced."""
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).symlink_to(file)
    return target


def put(file: Path, content: bytes) -> None:
    """Replace a link, not what it leads to."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def places(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all values in JSON: keys and indices that lead there, for all levels."""
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*before, key)
            yield from places(child, (*before, key))


def text(draw: Any, content: Any) -> str:
    """JSON with one value damaged: replaced by another of any type, removed, or given twice."""
    content = json.loads(json.dumps(content))
    *parents, key = draw(st.sampled_from(sorted(places(content), key=repr)))
    holder = content
    for parent in parents:
        holder = holder[parent]
    found = holder[key]
    how = draw(st.sampled_from(["replace"] * 8 + ["remove", "twice"]))
    if how == "remove":
        del holder[key]
        return json.dumps(content)
    holder[key] = _MARK
    raw = draw(_raw(found))
    if how == "twice":
        again = f"{json.dumps(key)}: {raw}" if isinstance(holder, dict) else raw
        raw = f"{json.dumps(found)}, {again}"
    return json.dumps(content).replace(json.dumps(_MARK), raw)


def _raw(found: Any) -> st.SearchStrategy[str]:
    """JSON texts in the place of a value: near it, of another type, out of any range, or no JSON at all."""
    near: list[Any] = [found]
    if isinstance(found, bool):
        near = [not found, int(found)]
    elif isinstance(found, (int, float)):
        near = [found + 1, found - 1, found * 2, found // 2, -found, float(found), str(found), [found]]
    elif isinstance(found, str):
        near = [found[:-1], found + "x", found.upper(), "", [found]]
    elif isinstance(found, list):
        near = [found[:-1], [*found, *found[-1:]], found[::-1], {}, [[*found]]]
    elif isinstance(found, dict):
        near = [list(found), {}, {**found, "more": 1}]
    numbers = st.one_of(
        st.integers(-3, 70), st.integers(), st.sampled_from([10**9, 2**31, 2**63, 2**64, 10**30, -(10**9)])
    )
    json_values = st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, st.floats(allow_nan=False), st.text(max_size=8)),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
        max_leaves=4,
    )
    odd = [
        *("NaN", "Infinity", "-Infinity", "1e999", "1e-999", "-0", "9" * 5000, "1" * 200, "01", "nul", ""),
        *('"\\ud800"', '"' + "a" * 100_000 + '"', '"../../etc/passwd"', "[" * 100 + "]" * 100, "[" * 100_000),
    ]
    return st.one_of(
        st.sampled_from(near).map(json.dumps),
        numbers.map(json.dumps),
        json_values.map(json.dumps),
        st.sampled_from(odd),
    )


def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes cut off, changed, inserted or removed."""
    at = draw(st.integers(0, len(content)))
    size = draw(st.integers(0, 20))
    how = draw(st.sampled_from(["cut", "flip", "insert", "delete", "repeat"]))
    if how == "cut":
        return content[:at]
    if how == "flip":
        at = min(at, len(content) - 1)
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
    if how == "delete":
        return content[:at] + content[at + size :]
    return content[: at + size] + content[at:]


def something_else(draw: Any, file: Path) -> None:
    """Something else than a file, or another file, in the place of a file."""
    kinds = ["folder", "nothing", "link to nothing", "empty", "noise"] + ["pipe"] * hasattr(os, "mkfifo")
    kind = draw(st.sampled_from(kinds))
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link to nothing":
        file.symlink_to(file.with_name("nothing"))
    elif kind == "empty":
        file.touch()
    elif kind == "noise":
        file.write_bytes(draw(st.binary(min_size=1, max_size=300)))
    elif kind == "pipe":
        os.mkfifo(file)
