"""Whether to capture the denoising step: measured once, then remembered.

What a graph gains depends on card, versions and shapes, and nothing but a measurement tells. So the first run of its
kind evaluates steps both ways, compares them to the bit and in time, and writes the verdict to a file in the user's
cache folder, which later runs read. A measurement that takes the process down is not repeated: what it found is in
the file before it begins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import npu_setup
from .devices import device_name, is_out_of_memory, synchronize
from .files import read_json, replacing
from .locations import cache_folder


logger = logging.getLogger(__name__)

Step = Callable[[Tensor, Tensor], Tensor]
"""(latents [b, C, h, w], modulation [rows, vectors, width]) to velocity [rows, C, h, w]."""

_STEP = 2
"""Raised when a step has other operators, so that it is measured again."""

_TIMED = 3
"""Steps of each way that are timed; the fastest counts."""

_LONGEST_SECONDS = 600.0
"""A measurement that began longer ago than this and has no result has failed."""


@dataclass(frozen=True)
class Verdict:
    """What was measured.

    Attributes:
        equal: Whether the velocities were equal to the bit.
        launched_ms: A step whose operators the host launches, in milliseconds.
        captured_ms: A replayed one.
        trouble: Why it could not be captured.
        began: Of a measurement without a result yet: when, in seconds since the epoch.
    """

    equal: bool = False
    launched_ms: float = 0.0
    captured_ms: float = 0.0
    trouble: str = ""
    began: float = 0.0

    @property
    def captures(self) -> bool:
        """Whether to capture: where it is equal and faster."""
        return self.equal and self.captured_ms < self.launched_ms

    def __str__(self) -> str:
        if self.trouble:
            return f"cannot be captured ({self.trouble}), so the host launches its operators"
        times = f"takes {self.captured_ms:.1f} ms captured and {self.launched_ms:.1f} ms launched by the host"
        if not self.equal:
            return f"{times}, but the results differ, so it is not captured"
        return f"{times}, with equal results, so it is {'' if self.captures else 'not '}captured"


def captured_where_better(
    step: Step,
    capture: Callable[[Step, Tensor, Tensor], Step],
    latents: Tensor,
    modulation: Tensor,
    shapes: Mapping[str, Any],
) -> Step | None:
    """The captured step where that was measured to be equal and faster, now or in an earlier run; else None.

    Args:
        step: The step.
        capture: Captures it; raises a RuntimeError where that is not possible.
        latents: [b, C, h, w] of the first step.
        modulation: [rows, vectors, width] of the first step.
        shapes: What else the speed depends on: shapes, dtypes.
    """
    facts = _facts(latents.device, shapes)
    path = cache_folder() / "graphs" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    known = _read(path)
    if known is not None and known.began:
        if time.time() - known.began > _LONGEST_SECONDS:
            logger.warning(
                "Capturing the denoising step did not end in an earlier run. To try it again, remove %s", path
            )
        return None  # or another process measures at this moment
    if known is not None and not known.captures:
        return None
    try:
        if known is not None:
            return capture(step, latents, modulation)
        _write(path, Verdict(began=time.time()), facts)
        captured, verdict = _measure(step, capture, latents, modulation)
    except RuntimeError as error:
        if is_out_of_memory(error):
            _forget(path)
            logger.warning("There is no memory for a graph of the denoising step; the host launches its operators.")
            return None
        captured, verdict = None, Verdict(trouble=str(error).splitlines()[0])
    except BaseException:  # Ctrl-C: that says nothing about graphs
        _forget(path)
        raise
    if verdict is None:
        _forget(path)
        return None
    _write(path, verdict, facts)
    logger.info("On %s a denoising step %s from now on (%s).", facts["card"], verdict, path)
    return captured if verdict.captures else None


def _measure(
    step: Step, capture: Callable[[Step, Tensor, Tensor], Step], latents: Tensor, modulation: Tensor
) -> tuple[Step, Verdict | None]:
    """The captured step, and the verdict: None where the step is broken, so that nothing can be compared."""
    captured = capture(step, latents, modulation)
    # With other values than those of the capture: a graph that does not read its inputs would still be equal.
    other = latents * 0.5, modulation * 0.5
    launched = step(*other)
    if not torch.isfinite(launched).all():
        return captured, None
    equal = torch.equal(launched, captured(*other))
    return captured, Verdict(equal, _milliseconds(step, *other), _milliseconds(captured, *other))


def _milliseconds(step: Step, latents: Tensor, modulation: Tensor) -> float:
    seconds = []
    for _ in range(_TIMED):
        synchronize(latents.device)
        start = time.perf_counter()
        step(latents, modulation)
        synchronize(latents.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e3


def _facts(device: torch.device, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict holds for."""
    versions = {name: npu_setup.package_version(name) for name in ("torch", "torch_npu", "mindiesd")}
    cann = npu_setup.cann_version(os.environ) if device.type == "npu" else torch.version.cuda
    return {
        **{"host": platform.node(), "card": device_name(device), "step": _STEP, **versions},
        **{"CANN" if device.type == "npu" else "CUDA": cann, **shapes},
    }


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict(**read_json(path)["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, verdict: Verdict, facts: Mapping[str, Any]) -> None:
    """Remember a verdict. Where nothing can be written, each run measures again."""
    content = json.dumps({"verdict": asdict(verdict), "of": facts}, indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_text(f"{content}\n", encoding="utf-8")
    except OSError as error:
        logger.debug("The verdict cannot be remembered: %s", error)


def _forget(path: Path) -> None:
    """A measurement has no result."""
    with suppress(OSError):
        path.unlink()
