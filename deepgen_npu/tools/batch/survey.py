"""All rows looked at before any work: what is done, what is to be made, what cannot be. Nothing here needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...checkpoint.folder import Checkpoint
from ...checkpoint.prompt_check import PromptCheck
from ...checks import must_be
from ...errors import UsageError
from ...files import FileError
from ...formatting import counted
from ...image_files import read_size
from ...image_request import ImageRequest
from .fingerprints import FileState, References, differences, fingerprint, pixels_hash
from .folder import OutputFolder
from .manifest import OK, Entry, History, Known
from .names import TakenNames, image_files
from .rows import BadRow, Defaults, Row, read_rows


if TYPE_CHECKING:
    from PIL import Image

DONE, KEPT, TO_MAKE, BAD, KEPT_ERROR, ELSEWHERE = range(6)
"""Of a row: in the manifest; its files are there, but no line; to be drawn; cannot be; could not be and is left so; of
another shard."""


@dataclass(frozen=True)
class Job:
    """A row to be drawn.

    Attributes:
        row: Checked.
        fingerprint: Of its images.
        references: States of the files that it names.
        stale: Images of the row that were made with other settings and have other names, below the output folder.
    """

    row: Row
    fingerprint: str
    references: Mapping[str, FileState]
    stale: tuple[str, ...] = ()

    def line(self, images: Sequence[Image.Image], **facts: Any) -> Entry:
        """The line of the manifest for the row's images.

        Args:
            images: In the order of their seeds.
            facts: What else it says.
        """
        row = self.row
        return Entry(
            row.number,
            row.id,
            OK,
            files=[str(name) for name in image_files(row.id, row.n)],
            seeds=row.seeds,
            width=images[0].width,
            height=images[0].height,
            sha256=[pixels_hash(image) for image in images],
            fingerprint=self.fingerprint,
            references=self.references,
            extra=row.extra,
            **facts,
        )


@dataclass
class Survey:
    """What the first look at a table found.

    Attributes:
        history: Of earlier runs.
        table: Size and time of the table's file.
        states: One byte for each row.
        errors: Why rows cannot be made, by their numbers.
        images: Number of images to be made.
        pixels: Of them, in all.
    """

    history: History
    table: tuple[int, int] = (0, 0)
    states: bytearray = field(default_factory=bytearray)
    errors: dict[int, BadRow] = field(default_factory=dict)
    images: int = 0
    pixels: int = 0

    def count(self, *states: int) -> int:
        """Rows in any of these states."""
        return sum(self.states.count(state) for state in states)

    @property
    def rows(self) -> int:
        """Those of this shard."""
        return len(self.states) - self.count(ELSEWHERE)

    def seconds(self) -> float | None:
        """What the images to be made take one after the other, by those that were made; None before the first."""
        return self.history.seconds / self.history.pixels * self.pixels if self.history.pixels else None


class Conflicts:
    """Rows whose images were made with other settings."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, name: str, differences: Mapping[str, str]) -> None:
        """One more.

        Args:
            name: Its id.
            differences: By settings, in words.
        """
        self.rows += 1
        self._counts.update(differences.keys())
        for setting, words in differences.items():
            self._first.setdefault(setting, f"{name} with {words}")

    def __str__(self) -> str:
        settings = (f"{name} in {count:,} (as {self._first[name]})" for name, count in self._counts.most_common())
        have = f"{counted(self.rows, 'row')} {'has' if self.rows == 1 else 'have'} images"
        advice = "Choose another --output, or --overwrite to make exactly these again."
        return f"{have} that were made with other settings: {', '.join(settings)}. {advice}"


@dataclass
class Surveyor:
    """What is needed to judge a row.

    Attributes:
        table: File of the rows.
        defaults: For what they do not say.
        checkpoint: That draws them.
        folder: Where images are.
        run: What decides about images besides the rows.
        overwrite: Whether images that were made with other settings are made again.
        keep_errors: Whether rows that could not be made before are left so.
    """

    table: Path
    defaults: Defaults
    checkpoint: Checkpoint
    folder: OutputFolder
    run: Mapping[str, Any]
    overwrite: bool = False
    keep_errors: bool = False

    def __post_init__(self) -> None:
        self._references = References()
        self._prompts = PromptCheck(self.checkpoint)

    def survey(self, on_row: Callable[[], Any] = lambda: None) -> Survey:
        """Look at all rows.

        Args:
            on_row: Called after each.

        Raises:
            UsageError: When images there were made with other settings.
            FileError: When table or manifest cannot be read.
        """
        found = Survey(History(self.folder.manifests()), _state_of(self.table))
        taken = TakenNames()
        conflicts = Conflicts()
        for row in read_rows(self.table, self.defaults):
            clash = _take(row, taken)
            if not self.folder.shard.has(row.number):
                found.states.append(ELSEWHERE)
            else:
                found.states.append(self._state(row, clash, found, conflicts))
            on_row()
        if conflicts.rows:
            raise UsageError(f"In {self.folder.path}, {conflicts}")
        return found

    def jobs(self, survey: Survey) -> Iterator[tuple[int, Job | BadRow]]:
        """What there is to do, in the order of the rows, with its state: jobs, and rows that cannot be made."""
        if not survey.count(BAD, KEPT, TO_MAKE):
            return
        # Without `strict`, as the table may have changed.
        for row, state in zip(read_rows(self.table, self.defaults), survey.states, strict=False):
            if state == BAD:
                yield BAD, survey.errors[row.number]
            elif state in (TO_MAKE, KEPT):
                yield self._job(row, state, survey.history)

    def require_same_table(self, survey: Survey) -> None:
        """Refuse a table that is another one than before.

        Raises:
            FileError: Rows may have been missed.
        """
        if _state_of(self.table) != survey.table:
            raise FileError(f"{self.table} has changed since it was checked: start again.")

    def images(self, count: int) -> list[tuple[str, Path]]:
        """Names and files of images that are there, evenly from all rows of this shard: first images of rows.

        Args:
            count: At most so many.
        """
        history = History(self.folder.manifests())
        rows = read_rows(self.table, self.defaults)
        names = dict.fromkeys(row.id for row in rows if self.folder.shard.has(row.number))
        made = [known for known in map(history.get, names) if known is not None and known.fingerprint]
        some = made if len(made) <= count else [made[number * len(made) // count] for number in range(count)]
        lines = map(history.line, some)
        return [(line["id"], self.folder.path / line["files"][0]) for line in lines]

    def _job(self, row: Row | BadRow, state: int, history: History) -> tuple[int, Job | BadRow]:
        if isinstance(row, BadRow):
            return BAD, row
        before = history.get(row.id)
        line = history.line(before) if before else {}
        try:
            references = self._states_of_files(row, before, history)
        except OSError as error:  # it was there when the rows were checked
            return BAD, BadRow(row.number, row.id, _unreadable(error))
        own = image_files(row.id, row.n)
        stale = tuple(str(name) for name in _earlier_files(row, line) if name not in own)
        return state, Job(row, fingerprint(row, self.run, references), references, stale)

    def _state(self, row: Row | BadRow, clash: str, found: Survey, conflicts: Conflicts) -> int:
        # The line of another row must not become that of an error: no id has a colon.
        name = f"row:{row.number}" if clash else row.id
        before = found.history.get(name)
        error = row.error if isinstance(row, BadRow) else clash
        height = width = 0
        if isinstance(row, Row) and not error:
            try:
                if self._is_done(row, before, found.history):
                    return DONE
                height, width = self._size(row)
                self._prompts(row.prompt, row.negative_prompt, editing=bool(row.images))
                state = self._stored_state(row, before, found.history, conflicts)
            except (ValueError, TypeError) as fault:
                error = str(fault)
            except OSError as fault:
                error = _unreadable(fault)
            else:
                if state == TO_MAKE:
                    found.images += row.n
                    found.pixels += row.n * height * width
                return state
        if self.keep_errors and before is not None and not before.fingerprint:
            return KEPT_ERROR
        found.errors[row.number] = BadRow(row.number, name, error)
        return BAD

    def _is_done(self, row: Row, before: Known | None, history: History) -> bool:
        """Whether a line says that the row is as it would be now, and its images are there."""
        if before is None or not before.fingerprint:
            return False
        try:
            mark = fingerprint(row, self.run, self._states_of_files(row, before, history))
        except OSError:  # that follows says why
            return False
        names = image_files(row.id, row.n)
        return before.is_of(mark) and all((self.folder.path / name).is_file() for name in names)

    def _stored_state(self, row: Row, before: Known | None, history: History, conflicts: Conflicts) -> int:
        """By what is in the folder, of a row that is not done.

        Raises:
            OSError: When a reference cannot be read.
        """
        names = image_files(row.id, row.n)
        if before is None or not before.fingerprint:
            if before is not None and self.keep_errors:
                return KEPT_ERROR
            if not any((self.folder.path / name).exists() for name in names):
                return TO_MAKE
        mark = fingerprint(row, self.run, self._states_of_files(row, before, history))
        if before is not None and before.is_of(mark):
            return TO_MAKE
        stored = [self.folder.stored(name) for name in names]
        marks = [None if one is None else _mark(one) for one in stored]
        if all(one == mark for one in marks):
            return KEPT
        if not self.overwrite:
            earlier = _earlier_files(row, history.line(before)) if before else []
            stored += [self.folder.stored(name) for name in earlier if name not in names]
            other = [one for one in stored if one is not None and _mark(one) != mark]
            if other:
                conflicts.add(row.id, differences(row, self.run, other[0]))
        return TO_MAKE

    def _states_of_files(self, row: Row, before: Known | None, history: History) -> dict[str, FileState]:
        """Of what a row names.

        Raises:
            OSError: When one cannot be read.
        """
        if not (row.images or row.mask):
            return {}
        return self._references.of(row, history.line(before).get("references") if before else None)

    def _size(self, row: Row) -> tuple[int, int]:
        """(height, width) of the images of a row, by the headers of its files.

        Raises:
            ValueError: When the model cannot draw it, or a file is no image.
        """
        sizes: Any = [read_size(Path(name)) for name in row.images]
        if row.mask:
            read_size(Path(row.mask))
        in_place = row.keep_unchanged or row.mask is not None
        request = ImageRequest(self.checkpoint.sizes, sizes, None, in_place, row.follow_input, row.height, row.width)
        _ = request.size  # also of an edit in place, which has another size in the end
        return request.result_size


def _mark(stored: Mapping[str, Any]) -> str:
    batch = stored.get("batch")
    return str(batch.get("fingerprint", "")) if isinstance(batch, dict) else ""


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}."


def _take(row: Row | BadRow, taken: TakenNames) -> str:
    """What is wrong with the id of a row, as another has its files; empty if nothing is. Then they are this one's."""
    other = taken.take(row.id, row.n if isinstance(row, Row) else 1, row.number)
    if other is None:
        return ""
    requirement = "unlike those of other rows, whatever the case of letters"
    return must_be("id", requirement, row.id, advice=f"Row {other} has it.")


def _earlier_files(row: Row, line: Mapping[str, Any]) -> list[PurePosixPath]:
    """Images of a row that its line of the manifest says are there."""
    count = len(line.get("files", ()))
    return image_files(row.id, count) if count else []


def _state_of(table: Path) -> tuple[int, int]:
    try:
        found = table.stat()
    except OSError:
        return 0, 0  # reading it says why
    return found.st_size, found.st_mtime_ns
