"""What an operator sees of a batch: a forecast, and one line while it runs. Nothing here needs torch."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...formatting import counted, format_bytes
from .manifest import ERROR, Entry
from .survey import BAD, DONE, KEPT, KEPT_ERROR, TO_MAKE, Survey


MANY = 10_000
"""Rows from which on their check takes long enough for a progress bar."""

REPORT = "5.67 s for 512 x 512 pixels and 50 steps on an Ascend 910, by the adaptation report"
"""The only published time of one image."""

_REPORT_SECONDS, _REPORT_PIXELS = 5.67, 512 * 512
_MOST_SHOWN = 20


class Checking:
    """The bar while rows are checked. Their number is not known before the end."""

    def __init__(self) -> None:
        self._count = 0
        self._bar: Any = None

    def add(self) -> None:
        """One more row."""
        self._count += 1
        if self._count == MANY:
            self._bar = tqdm(desc="Checking rows", unit="row", initial=MANY, file=sys.stderr)
        elif self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """The end."""
        if self._bar is not None:
            self._bar.close()


class Progress:
    """One line: rows, errors, images a minute, workers, time left.

    Args:
        survey: What is to be done.
    """

    def __init__(self, survey: Survey):
        self._total = survey.count(TO_MAKE, KEPT, BAD)
        self._errors = self._images = 0
        self._start = time.perf_counter()
        self._bar: Any = None

    def add(self, entry: Entry, workers: str = "") -> None:
        """One more row.

        Args:
            entry: Its line.
            workers: How many of how many work; empty if there is only this process.
        """
        if self._bar is None:  # loading the model, which has a bar of its own, is no part of the time of a row
            self._start = time.perf_counter() - entry.seconds
            self._bar = tqdm(total=self._total, unit="row", smoothing=0.05, file=sys.stderr)
        self._errors += entry.status == ERROR
        self._images += len(entry.files) if entry.attempts else 0
        minutes = max(time.perf_counter() - self._start, 1e-9) / 60
        facts = {"errors": f"{self._errors:,}", "images/min": f"{self._images / minutes:.1f}"}
        self._bar.set_postfix({**facts, **({"workers": workers} if workers else {})}, refresh=False)
        self._bar.update()

    def tell(self, sentence: str) -> None:
        """Something else, on a line of its own."""
        tqdm.write(sentence, file=sys.stderr)

    def close(self) -> None:
        """The end."""
        if self._bar is not None:
            self._bar.close()


def forecast(survey: Survey, output: Path, devices: int | None) -> str:
    """What is left to do, and what it takes.

    Args:
        survey: Of the rows.
        output: For the space that is free there.
        devices: How many draw at once; None if that is not known.
    """
    words = [f"{counted(survey.rows, 'row')}: {survey.count(TO_MAKE):,} to make ({counted(survey.images, 'image')})"]
    for state, name in (
        (DONE, "done before"),
        (KEPT, "finished without a line in the manifest"),
        (BAD, "that cannot be made"),
        (KEPT_ERROR, "that failed before and are left so"),
    ):
        words += [f"{survey.count(state):,} {name}"] if survey.count(state) else []
    lines = [", ".join(words) + "."]
    if survey.images:
        lines += [_space(survey, output), _time(survey, devices)]
    return "\n".join(lines)


def _space(survey: Survey, output: Path) -> str:
    # Photographs as PNG take about two bytes a pixel; noise takes three.
    usual, most = 2 * survey.pixels, 3 * survey.pixels
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    warning = " That may be too little: the run stops when the disk is full, and goes on when there is room."
    return (
        f"Space: about {format_bytes(usual)}, at most {format_bytes(most)}; {format_bytes(free)} are free."
        f"{warning if free < most else ''}"
    )


def _time(survey: Survey, devices: int | None) -> str:
    seconds = survey.seconds()
    if seconds is None:
        source, seconds = REPORT, _REPORT_SECONDS / _REPORT_PIXELS * survey.pixels
    else:
        source = f"{seconds / survey.images:.2g} s an image, as so far in this folder"
    where = "divided by devices"
    if devices is not None:
        seconds, where = seconds / devices, "on one device" if devices == 1 else f"on {devices} devices"
    return f"Time: about {duration(seconds)} {where} ({source})."


def faults(survey: Survey) -> str:
    """Rows that cannot be made, and why: the first of them."""
    lines = [f"Row {bad.number} (id {bad.id}): {bad.error}" for bad in list(survey.errors.values())[:_MOST_SHOWN]]
    if len(survey.errors) > _MOST_SHOWN:
        lines.append(f"... and {len(survey.errors) - _MOST_SHOWN:,} more.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in words: ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{max(1, round(seconds))} s"
