"""``python -m deepgen_npu bench``: the adaptation report's tables for this machine.

Memory of each part; time to load; time of each stage and of the whole run, steps a second. The first run warms up and
is told apart; the others give medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .checkpoint import PARTS
from .devices import memory_allocated, peak_memory, reset_peak_memory, synchronize


if TYPE_CHECKING:
    from PIL import Image

    from .pipeline import DeepGenPipeline

STAGES = ("encode", "denoise", "decode")


@dataclass
class Measurement:
    """What `measure` found. Bytes, seconds.

    Attributes:
        weights: Of each part.
        load_seconds: Of the whole pipeline.
        warm_up: Seconds of the first run.
        stages: Median seconds of each stage.
        run: Median seconds of a whole run.
        steps_per_second: Of denoising.
        peak: Most memory that was allocated on the device during a run; None on a CPU.
    """

    device: str
    name: str
    dtype: str
    height: int
    width: int
    steps: int
    guidance_scale: float
    references: int
    runs: int
    captured: bool
    weights: dict[str, int] = field(default_factory=dict)
    load_seconds: float = 0.0
    warm_up: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    run: float = 0.0
    steps_per_second: float = 0.0
    peak: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def weights_of(pipe: DeepGenPipeline) -> dict[str, int]:
    """Bytes of each part's parameters."""
    return {
        part: sum(parameter.nbytes for parameter in pipe.components[part].parameters()) for part in PARTS
    }


def measure(
    pipe: DeepGenPipeline,
    result: Measurement,
    prompt: str,
    images: list[Image.Image],
    seed: int,
    on_run: Callable[[int], object] | None = None,
) -> Measurement:
    """Time whole runs of the pipeline and fill in ``result``.

    Args:
        result: With the settings of the runs.
        on_run: Called with the number of each run before it begins; 0 is the one for warming up.
    """
    device = torch.device(result.device)
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    peaks = []
    for number in range(result.runs + 1):
        if on_run is not None:
            on_run(number)
        reset_peak_memory(device)
        times = _run(pipe, result, prompt, images, seed, device)
        if number == 0:
            result.warm_up = sum(times.values())
            continue
        peaks.append(peak_memory(device))
        for stage, value in times.items():
            seconds[stage].append(value)
    result.stages = {stage: statistics.median(values) for stage, values in seconds.items()}
    result.run = statistics.median(sum(values) for values in zip(*seconds.values(), strict=True))
    result.steps_per_second = result.steps / result.stages["denoise"]
    result.peak = max(peaks) if memory_allocated(device) is not None else None
    result.weights = weights_of(pipe)
    return result


def _run(
    pipe: DeepGenPipeline,
    settings: Measurement,
    prompt: str,
    images: list[Image.Image],
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Seconds of each stage of one run."""
    noise = pipe.prepare_latents(1, settings.height, settings.width, seed=seed)
    times, state = {}, None
    stages: dict[str, Callable[[Any], Any]] = {
        "encode": lambda _: pipe.encode(prompt, images or None, "", settings.height, settings.width),
        "denoise": lambda conditioning: pipe.denoise(conditioning, noise, settings.steps, settings.guidance_scale),
        "decode": lambda latents: pipe.decode(latents, "pil"),
    }
    try:
        for stage, run in stages.items():
            synchronize(device)
            start = time.perf_counter()
            state = run(state)
            synchronize(device)
            times[stage] = time.perf_counter() - start
    finally:
        pipe.placement.release()
    return times


def as_markdown(result: Measurement) -> str:
    """The report's two tables, and the time of each stage."""
    lines = [
        f"{result.name} ({result.device}), {result.dtype}, {result.width} x {result.height}, {result.steps} steps, "
        f"guidance {result.guidance_scale}, {result.references} reference(s)"
        + (", captured in a graph" if result.captured else ""),
        "",
        "| part | weights |",
        "|---|---|",
        *(f"| {part} | {_gib(size)} |" for part, size in result.weights.items()),
    ]
    if result.peak is not None:
        lines.append(f"| most allocated during a run | {_gib(result.peak)} |")
    lines += [
        "",
        f"| what | median of {result.runs} |",
        "|---|---|",
        f"| loading | {result.load_seconds:.2f} s (once) |",
        f"| first run (warming up) | {result.warm_up:.2f} s |",
        *(f"| {stage} | {seconds:.3f} s |" for stage, seconds in result.stages.items()),
        f"| denoising | {result.steps_per_second:.2f} it/s |",
        f"| whole run | {result.run:.2f} s |",
    ]
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
