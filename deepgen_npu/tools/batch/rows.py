"""What a row says: its columns read, checked and filled with defaults. Nothing here needs torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import checks
from ...checks import Named, must, must_be
from ...sizes import PAD, STRETCH
from .names import check_id
from .tables import Broken, Cells, read_table


ALIASES = {
    "instruction": "prompt",
    "image": "images",
    "image_url": "images",
    "input_images": "images",
    "num_images_per_prompt": "n",
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
}
"""Other names of columns: those of evaluation sets, and of other programs that read such tables."""

ADDED_LATER: Mapping[str, Any] = {"guidance_every": 1}
"""Settings that were added after the first release, and the values that leave images as they were: with these, rows
have the fingerprints that they had, and folders go on."""

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
"""Texts of CSV that are a switch."""


@dataclass(frozen=True)
class Defaults:
    """What rows are that do not say it themselves: the options of the command.

    Attributes:
        seed: Of the row with the number 0; each row has the next.
    """

    negative_prompt: str = ""
    seed: int = 42
    n: int = 1
    height: int | None = None
    width: int | None = None
    follow_input: str | None = None
    keep_unchanged: bool = False
    num_inference_steps: int = 50
    guidance_scale: float = 4.0
    guidance_every: int = 1


@dataclass(frozen=True)
class Row:
    """One row: all that decides about its images but the model.

    Attributes:
        number: Of the row in its table, from 0.
        id: A file name without its ending.
        images: The image to edit and further references, as paths; none to generate.
        mask: Where the first may be changed, a path; None for everywhere.
        seed: Of the first image; the next has the next.
        n: Number of images.
        extra: Columns that are none of ours.
    """

    number: int
    id: str
    prompt: str
    negative_prompt: str
    images: tuple[str, ...]
    mask: str | None
    keep_unchanged: bool
    seed: int
    n: int
    height: int | None
    width: int | None
    follow_input: str | None
    num_inference_steps: int
    guidance_scale: float
    guidance_every: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Of the images."""
        return [self.seed + number for number in range(self.n)]

    def settings(self) -> dict[str, Any]:
        """What decides about the images, by name; without what is as in `ADDED_LATER`."""
        settings = {name: getattr(self, name) for name in COLUMNS[1:]}
        return dict(item for item in settings.items() if item not in ADDED_LATER.items())


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be made, and why."""

    number: int
    id: str
    error: str


def read_rows(path: Path, defaults: Defaults) -> Iterator[Row | BadRow]:
    """The rows of a table, in its order, each by itself.

    Args:
        path: Of the table; images are named relative to its folder.
        defaults: For what a row does not say.

    Raises:
        FileError: As `tables.read_table`.
    """
    for number, cells in enumerate(read_table(path)):
        usual = f"{number:08d}"
        if isinstance(cells, Broken):
            yield BadRow(number, usual, cells.reason)
            continue
        named = usual
        try:
            given = cells.get("id")
            named = usual if given is None else check_id(given)
            yield _row(number, named, cells, defaults, path.parent)
        except (TypeError, ValueError) as error:
            yield BadRow(number, named, str(error))


def _row(number: int, name: str, cells: Cells, defaults: Defaults, folder: Path) -> Row:
    given, extra = _known(cells)
    seed = checks.seed(_whole(given.pop("seed", defaults.seed + number)))
    n = checks.images("n", _whole(given.pop("n", defaults.n)))
    if seed + n > 2**64:
        raise ValueError(must_be("seed + n", f"at most {2**64}", seed + n))
    steps, guidance = checks.steps(
        _whole(given.pop("num_inference_steps", defaults.num_inference_steps)),
        _number(given.pop("guidance_scale", defaults.guidance_scale)),
    )
    every = checks.guidance_every(_whole(given.pop("guidance_every", defaults.guidance_every)))
    prompt = _text("prompt", given.pop("prompt", None))
    images = _paths(given.pop("images", ()), folder)
    mask = given.pop("mask", None)
    keep = _switch("keep_unchanged", given.pop("keep_unchanged", defaults.keep_unchanged and bool(images)))
    follow = _follow(given.pop("follow_input", defaults.follow_input if images else None))
    sides = {name: given.pop(name, getattr(defaults, name)) for name in ("height", "width")}
    sides = {
        name: None if side is None else checks.integer(name, _whole(side), 1, checks.MAX_SIDE)
        for name, side in sides.items()
    }
    for option, value in (("mask", mask), ("keep_unchanged", keep), ("follow_input", follow)):
        if value and not images:
            raise ValueError(f"{option} needs an image to edit: name one in images.")
    if follow == STRETCH and (mask or keep):
        raise ValueError("follow_input stretch cannot be combined with mask or keep_unchanged: leave it out.")
    return Row(
        number,
        name,
        prompt,
        _text("negative_prompt", given.pop("negative_prompt", defaults.negative_prompt)),
        images,
        None if mask is None else _path("mask", mask, folder),
        keep,
        seed,
        n,
        sides["height"],
        sides["width"],
        follow,
        steps,
        guidance,
        every,
        extra,
    )


COLUMNS = ("id", *(name for name in Row.__dataclass_fields__ if name not in ("number", "id", "extra")))
"""Of a table, by their own names."""


def _known(cells: Cells) -> tuple[Cells, Cells]:
    """Our columns by their own names, without the id; and the others."""
    given: Cells = {}
    extra: Cells = {}
    for name, value in cells.items():
        own = ALIASES.get(name, name)
        if own not in COLUMNS:
            extra[name] = _plain(value)
        elif value is None:
            continue
        elif own in given:
            raise ValueError(f"{own} is given twice, as {name} too: keep one of the columns.")
        elif own != "id":
            given[own] = value
    return given, extra


def _whole(value: Any) -> Any:
    """The integer of a text or of a float such as 50.0, which tables make of integers; else the value."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= 100:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(must_be(name, "a text", Named("nothing") if value is None else value))
    return value


def _switch(name: str, value: Any, requirement: str = "true or false") -> bool:
    if isinstance(value, str) and value.strip().lower() in (*TRUE, *FALSE):
        return value.strip().lower() in TRUE
    if not isinstance(value, bool):
        raise TypeError(must_be(name, requirement, value))
    return value


def _follow(value: Any) -> str | None:
    if value in (None, PAD, STRETCH):
        return value
    return PAD if _switch("follow_input", value, f"{PAD}, {STRETCH}, true or false") else None


def _paths(value: Any, folder: Path) -> tuple[str, ...]:
    """A path, a list of them, or a list as JSON, which a cell of CSV has."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(must_be("images", "a path, or a list of paths as JSON", value)) from None
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise TypeError(must_be("images", "a path or a list of paths", value))
    if len(given) > checks.MAX_REFERENCES:
        raise ValueError(must("images", f"have at most {checks.MAX_REFERENCES} paths", len(given)))
    return tuple(_path("images", one, folder) for one in given)


def _path(name: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(must_be(name, "the path of an image", value))
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", value):
        advice = "Nothing is fetched from the network: download it, and name the file."
        raise ValueError(must_be(name, "the path of an image", value, advice=advice))
    return str(folder / value)


def _plain(value: Any) -> Any:
    """What JSON can have of a cell: tables have dates, bytes and numbers that are none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):  # images, usually
        return f"{len(value)} bytes"
    return str(value)
