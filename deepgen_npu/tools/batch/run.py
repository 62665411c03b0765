"""A batch from its table to its folder: survey, work, journal, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...formatting import counted
from ...image_files import open_image
from .folder import OutputFolder
from .manifest import ERROR, OK, Entry, Manifest
from .names import image_files
from .rows import BadRow
from .survey import DONE, KEPT, KEPT_ERROR, Job, Survey, Surveyor


class Drawer(Protocol):
    """What draws: this process, or workers of a cluster."""

    workers: list[Mapping[str, Any]]
    """Those that came up: node, device and versions."""

    @property
    def state(self) -> str:
        """For the progress bar: how many of how many work."""
        ...

    def draw(self, jobs: Iterator[Job]) -> Iterator[Entry]:
        """Draw jobs; their lines of the manifest, in any order."""
        ...


@dataclass
class Tally:
    """What a run did.

    Attributes:
        made: Rows that were drawn.
        kept: Rows whose images were there without a line.
        failed: Rows that could not be made, now or in an earlier run.
        done: Rows that an earlier run has made.
        images: Number of images that were drawn.
        seconds: Of the run.
    """

    made: int = 0
    kept: int = 0
    failed: int = 0
    done: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def finished(self) -> int:
        """Rows whose images are there."""
        return self.made + self.kept + self.done

    def __str__(self) -> str:
        """One line: what was done, and how fast."""
        rate = f", {60 * self.images / self.seconds:.1f} images a minute" if self.images and self.seconds > 0 else ""
        parts = [f"{counted(self.made, 'row')} made ({counted(self.images, 'image')}{rate})"]
        parts += [f"{self.done:,} done before"] if self.done else []
        parts += [f"{self.kept:,} found finished"] if self.kept else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        return ", ".join(parts) + "."


def run(
    surveyor: Surveyor,
    survey: Survey,
    drawer: Drawer,
    tally: Tally,
    on_entry: Callable[[Entry], Any] = lambda entry: None,
    tell: Callable[[str], Any] = lambda sentence: None,
) -> None:
    """Do what the survey left to do. The folder is locked.

    Args:
        surveyor: Of the table.
        survey: What it found.
        drawer: What draws.
        tally: Filled in, also if the run is stopped.
        on_entry: Called with each new line.
        tell: Called with what an operator should know.

    Raises:
        OSError: When an image or a line cannot be written.
        FileError: When the table has changed since the survey; what it found is done.
    """
    start = time.perf_counter()
    tally.done, tally.failed = survey.count(DONE), survey.count(KEPT_ERROR)
    folder = surveyor.folder
    manifest = Manifest(folder.manifest)
    if manifest.torn:
        tell(f"A torn line at the end of {folder.manifest} was cut off ({manifest.torn} bytes).")
    stale: dict[str, tuple[str, ...]] = {}

    def note(entry: Entry) -> None:
        manifest.add(entry)
        for name in stale.pop(entry.id, ()) if entry.status == OK else ():
            (folder.path / name).unlink(missing_ok=True)
        tally.failed += entry.status == ERROR
        if entry.status == OK:
            tally.kept += entry.attempts == 0
            tally.made += entry.attempts > 0
            tally.images += len(entry.files) if entry.attempts else 0
        on_entry(entry)

    def to_draw() -> Iterator[Job]:
        """The jobs; what needs no drawing is noted on the way."""
        for state, one in surveyor.jobs(survey):
            if isinstance(one, BadRow):
                note(Entry(one.number, one.id, ERROR, error=one.error, attempts=0))
                continue
            if one.stale:
                stale[one.row.id] = one.stale
            entry = finished(one, folder) if state == KEPT else None
            if entry is None:
                yield one
            else:
                note(entry)

    try:
        for entry in drawer.draw(to_draw()):
            note(entry)
        surveyor.require_same_table(survey)
        devices = {str(worker["device"]) for worker in drawer.workers}
        _warn_of_devices(devices | survey.history.devices, tell)
    finally:
        tally.seconds = round(time.perf_counter() - start, 1)
        manifest.close()


def _warn_of_devices(names: set[str], tell: Callable[[str], Any]) -> None:
    if len(names) > 1:
        tell(
            f"Images of this folder were drawn on different devices ({', '.join(sorted(names))}), whose images differ "
            "slightly. The manifest says which drew which."
        )


def finished(job: Job, folder: OutputFolder) -> Entry | None:
    """The line of images that are there: their process was killed before it could write it. None if one is damaged."""
    row = job.row
    names = image_files(row.id, row.n)
    try:
        images = [open_image(folder.path / name) for name in names]
    except ValueError:
        return None
    kept = [(folder.stored(name) or {}).get("kept") for name in names] if row.mask or row.keep_unchanged else ()
    return job.line(images, attempts=0, kept=kept)
