"""How long an image of the demo checkpoint takes on the CPU of this machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .model import load
from .scenes import SIDE, Scene, Thing, render


ROOT = Path(__file__).resolve().parents[1]
RUNS = 5
PROMPT = "a red circle on the left on a white background"


def measure_times(folder: Path) -> dict[str, float]:
    """Seconds at the default steps and guidance: medians of `RUNS` runs after a warm-up.

    ``command`` is the whole command line, from its start to the written file.
    """
    pipe = load(folder)
    source = render(Scene((Thing("circle", "red", "left"),), "white"))
    return {
        "threads": torch.get_num_threads(),
        "generate": _median(lambda: pipe(PROMPT, height=SIDE, width=SIDE, seed=1)),
        "edit": _median(lambda: pipe("make it blue", source, height=SIDE, width=SIDE, seed=1)),
        "command": _command(folder),
    }


def _median(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _command(folder: Path) -> float:
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "deepgen_npu", "generate", "--device", "cpu", "--prompt", PROMPT]
        command += ["--model_path", str(folder.resolve()), "--output_image", str(Path(output) / "picture.png")]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - start
