"""``python -m deepgen_npu bench``: the adaptation report's tables for this machine.

Memory of each part; time to load; time of each stage and of the whole run, steps a second. The first run warms up and
is told apart; the others give medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..components import Part
from ..devices import memory_allocated, peak_memory, reset_peak_memory, synchronize
from ..formatting import format_bytes
from ..pipeline import DeepGenPipeline
from .runs import STAGES, RunSettings, run


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    stages: Mapping[str, float]

    @property
    def run(self) -> float:
        return sum(self.stages.values())


@dataclass
class Measurement:
    """What `measure` found. Bytes, seconds.

    Attributes:
        parts: Parameters and buffers of each part.
        load_seconds: Of the whole pipeline from files; None where no files were read.
        warm_up: The first run, which is in none of the medians.
        runs: The other ones.
        peaks: Most that was allocated on the device during each stage of any run, weights included, and
            ``whole run``; None on a CPU, where nobody counts.
    """

    settings: RunSettings
    parts: dict[str, Part]
    load_seconds: float | None
    warm_up: Times
    runs: list[Times] = field(default_factory=list)
    peaks: dict[str, int] | None = None

    @property
    def stages(self) -> dict[str, float]:
        """Median of each stage."""
        return {stage: statistics.median(times.stages[stage] for times in self.runs) for stage in STAGES}

    @property
    def run(self) -> float:
        """Median of the whole run."""
        return statistics.median(times.run for times in self.runs)

    @property
    def steps_per_second(self) -> float:
        """Of denoising, at its median."""
        return self.settings.num_inference_steps / self.stages["denoise"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the medians and all they were made of."""
        return {
            "settings": asdict(self.settings),
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "load_seconds": self.load_seconds,
            "warm_up": {**self.warm_up.stages, "run": self.warm_up.run},
            "median": {**self.stages, "run": self.run, "steps_per_second": self.steps_per_second},
            "runs": [{**times.stages, "run": times.run} for times in self.runs],
            "peaks": self.peaks,
        }


def measure(
    pipe: DeepGenPipeline,
    device: torch.device,
    settings: RunSettings,
    count: int,
    load_seconds: float | None = None,
    on_run: Callable[[int], object] = lambda number: None,
) -> Measurement:
    """Time whole runs of a pipeline.

    Args:
        device: Where the DiT runs.
        count: Runs to take the median of; there is one more before them.
        on_run: Called with the number of each run before it begins; 0 is the one for warming up.
    """
    counted = memory_allocated(device) is not None
    peaks: dict[str, int] = {}
    runs: list[Times] = []
    parts = pipe.memory()
    for number in range(count + 1):
        on_run(number)
        seconds: dict[str, float] = {}

        @contextmanager
        def timed(stage: str, seconds: dict[str, float] = seconds) -> Iterator[None]:
            reset_peak_memory(device)
            synchronize(device)
            start = time.perf_counter()
            yield
            synchronize(device)
            seconds[stage] = time.perf_counter() - start
            peaks[stage] = max(peaks.get(stage, 0), peak_memory(device))

        run(pipe, settings, timed)
        runs.append(Times(seconds))
    peaks["whole run"] = max(peaks.values())
    return Measurement(settings, parts, load_seconds, runs[0], runs[1:], peaks if counted else None)


def as_markdown(result: Measurement) -> str:
    """The report's two tables, with the time of each stage and the peaks."""
    lines = ["| Part | Device | Memory |", "|---|---|---|"]
    lines += [f"| {name} | {part.device} | {format_bytes(part.nbytes)} |" for name, part in result.parts.items()]
    lines += [f"| all parts | | {format_bytes(sum(part.nbytes for part in result.parts.values()))} |", ""]
    lines += [
        f"| What | Median of {len(result.runs)} | First run |" + (" Peak memory |" if result.peaks else ""),
        "|---|---|---|" + ("---|" if result.peaks else ""),
    ]
    for stage, seconds in (*result.stages.items(), ("whole run", result.run)):
        first = result.warm_up.run if stage == "whole run" else result.warm_up.stages[stage]
        peak = f" {format_bytes(result.peaks[stage])} |" if result.peaks else ""
        lines.append(f"| {stage} | {seconds:.3f} s | {first:.3f} s |{peak}")
    first_rate = result.settings.num_inference_steps / result.warm_up.stages["denoise"]
    loading = "Loading was not measured: random weights have no files."
    if result.load_seconds is not None:
        loading = f"Loading the model took {result.load_seconds:.2f} s, once (importing the libraries apart)."
    empty = " |" if result.peaks else ""
    lines.append(f"| denoising | {result.steps_per_second:.2f} it/s | {first_rate:.2f} it/s |{empty}")
    lines += ["", loading]
    return "\n".join(lines)
