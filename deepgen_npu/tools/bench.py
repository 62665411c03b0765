"""``python -m deepgen_npu bench``: the adaptation report's tables for this machine.

Memory of each part; time to load; time of each stage and of the whole run; steps per second, and how near that is to
what the card can compute. The first run is a warm-up and reported separately; medians are over the rest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import npu_fallback
from ..components import Part
from ..conditioning import Conditioning
from ..devices import memory_allocated, peak_memory, reset_peak_memory, synchronize
from ..dtypes import dtype_name
from ..formatting import format_bytes
from ..pipeline import DeepGenPipeline
from .peaks import compared, peak_of
from .runs import STAGES, RunSettings, run
from .specs import name_of
from .work import step_flops


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    stages: Mapping[str, float]

    @property
    def run(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())


@dataclass(frozen=True)
class Work:
    """What a step computes, and on what.

    Attributes:
        flops: Floating point operations (see `work.step_flops`), on average of the steps of a run.
        card: Name of the card or processor.
        dtype: Of the weights.
    """

    flops: int
    card: str
    dtype: str

    @classmethod
    def of(cls, pipe: DeepGenPipeline, device: torch.device, settings: RunSettings, found: Conditioning) -> Work:
        """That of the runs.

        Args:
            pipe: The pipeline.
            device: Where the DiT runs.
            settings: Of the runs.
            found: What the first stage made of the prompt.
        """
        factor = pipe.sizes.vae_factor
        latents = settings.height // factor, settings.width // factor
        references = [(one.shape[-2], one.shape[-1]) for one in found.reference_latents]
        images, tokens = found.prompt_embeds.shape[:2]
        steps = range(settings.num_inference_steps)
        guided = len(steps[:: settings.guidance_every]) if settings.guidance_scale > 1 else 0
        both, one = (
            step_flops(pipe.transformer.config, latents, tokens, references, images, is_guided)
            for is_guided in (True, False)
        )
        flops = (guided * both + (len(steps) - guided) * one) // len(steps)
        return cls(flops, name_of(device), dtype_name(pipe.dtype))

    def as_dict(self, rate: float) -> dict[str, Any]:
        """For JSON, at a rate of steps a second."""
        peak, reached = peak_of(self.card, self.dtype), self.flops * rate / 1e12
        known = {"peak_tflops": peak and peak.tflops, "peak_source": peak and peak.source}
        return {"step_flops": self.flops, "tflops": reached, **known, "share": peak and reached / peak.tflops}


@dataclass
class Measurement:
    """The result of `measure`, in bytes and seconds.

    Attributes:
        settings: Of the runs.
        parts: Parameters and buffers of each part.
        load_seconds: Of the whole pipeline from files; None where no files were read.
        warm_up: The first run, which no median includes.
        runs: The other runs.
        peaks: The most memory that was allocated on the device during each stage of any run, weights included, and
            during the ``whole run``; None on a CPU, where allocations are not counted.
        on_cpu: Operators without a kernel on the NPU, which run on the CPU.
        work: Of a step.
    """

    settings: RunSettings
    parts: dict[str, Part]
    load_seconds: float | None
    warm_up: Times
    runs: list[Times] = field(default_factory=list)
    peaks: dict[str, int] | None = None
    on_cpu: list[str] = field(default_factory=list)
    work: Work | None = None

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
        """For JSON: the medians and what they are computed from."""
        return {
            "settings": self.settings.as_dict(),
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "load_seconds": self.load_seconds,
            "warm_up": {**self.warm_up.stages, "run": self.warm_up.run},
            "median": {**self.stages, "run": self.run, "steps_per_second": self.steps_per_second},
            "runs": [{**times.stages, "run": times.run} for times in self.runs],
            "peaks": self.peaks,
            "on_cpu": self.on_cpu,
            "work": self.work and self.work.as_dict(self.steps_per_second),
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
        pipe: The pipeline, loaded.
        device: Where the DiT runs.
        settings: Of every run.
        count: Runs to take the median of; a warm-up precedes them.
        load_seconds: For the result.
        on_run: Called with the number of each run before it begins; 0 is the warm-up.
    """
    counted = memory_allocated(device) is not None
    peaks: dict[str, int] = {}
    runs: list[Times] = []
    parts = pipe.memory()
    found: list[Conditioning] = []
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

        run(pipe, settings, timed, found.append)
        runs.append(Times(seconds))
    peaks["whole run"] = max(peaks.values())
    work = Work.of(pipe, device, settings, found[-1]) if found else None
    return Measurement(
        settings, parts, load_seconds, runs[0], runs[1:], peaks if counted else None, npu_fallback.named(), work
    )


def as_markdown(result: Measurement) -> str:
    """The two tables of the adaptation report, with the time of each stage and the peaks."""
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
    loading = "Loading was not measured: random weights are not read from files."
    if result.load_seconds is not None:
        loading = f"Loading the model took {result.load_seconds:.2f} s (one run, without importing the libraries)."
    empty = " |" if result.peaks else ""
    lines.append(f"| denoising | {result.steps_per_second:.2f} it/s | {first_rate:.2f} it/s |{empty}")
    if result.work is not None:
        lines += ["", compared(result.work.flops, result.steps_per_second, result.work.card, result.work.dtype)]
    lines += ["", loading]
    if result.on_cpu:
        lines += ["", f"Without a kernel on the NPU, computed on the CPU: {', '.join(result.on_cpu)}."]
    return "\n".join(lines)
