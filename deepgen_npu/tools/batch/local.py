"""Rows drawn in this process, on one device: while one is drawn, the one before is saved and the next is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .manifest import Entry
from .survey import Job


if TYPE_CHECKING:
    from .drawing import Loaded, Painter


class Local:
    """One device and one model, which is loaded for the first row.

    Args:
        load: Loads it.

    Attributes:
        workers: What draws, for ``run.json``.
        state: For the progress bar; there is nothing to say.
    """

    state = ""

    def __init__(self, load: Callable[[], Painter]):
        self._load = load
        self.workers: list[Mapping[str, Any]] = []

    def draw(self, jobs: Iterator[Job]) -> Iterator[Entry]:
        """Draw jobs one after the other, in their order.

        A line is given only when its images are on the disk. Neither reading nor saving changes an image, so that both
        may overlap with drawing.

        Raises:
            OSError: When an image cannot be written.
            RunError: As of `Painter.draw`.
        """
        first = next(jobs, None)
        if first is None:
            return
        painter = self._load()
        self.workers.append(painter.facts())
        with (
            ThreadPoolExecutor(1, thread_name_prefix="deepgen-load") as loader,
            ThreadPoolExecutor(1, thread_name_prefix="deepgen-save") as saver,
        ):

            def begin(job: Job | None) -> tuple[Job, Future[Loaded]] | None:
                return None if job is None else (job, loader.submit(painter.load, job.row))

            current, saving = begin(first), None
            while current is not None:
                job, loading = current
                loaded = loading.result()
                current = begin(next(jobs, None))
                drawn = painter.draw(loaded)
                # Before the line of the one before, which may fail: what is drawn is saved.
                before, saving = saving, saver.submit(painter.save, job, drawn)
                if before is not None:
                    yield before.result()
            if saving is not None:
                yield saving.result()
