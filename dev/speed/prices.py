"""What fewer evaluations cost in likeness: steps, and guidance in every n-th step, with the demo checkpoint.

Generations of the evaluation's hardest group that fits into batches (`GROUP`), and edits of every kind, in float32 on
the CPU. Each picture is compared with the one of the published 50 steps, of the same noise and in the same run: by the
PSNR of its pixels, in levels as they are saved, and by the verdict of the demo's judge.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deepgen_npu import DeepGenPipeline
from deepgen_npu.locations import DEMO_FOLDER
from dev.markdown import head, row, say
from training import cases
from training.cases import Case
from training.edits import KINDS
from training.evaluate import GUIDANCE, make_images, verdicts
from training.model import load


GROUP = "two objects"
SEED = 11
"""Of the published evaluation."""

GENERATIONS, EDITS = 42, 16

BATCH = 16
"""Images at once: on a CPU, more of them at a time take longer each."""


@dataclass(frozen=True)
class Setting:
    """A choice of users."""

    steps: int
    guidance_every: int = 1

    @property
    def evaluations(self) -> float:
        """Of the DiT with both branches of guidance; one of the positive branch alone counts half."""
        both = len(range(0, self.steps, self.guidance_every))
        return both + (self.steps - both) / 2

    def __str__(self) -> str:
        return f"{self.steps} steps" + (f", `guidance_every` {self.guidance_every}" if self.guidance_every > 1 else "")


BASELINE = Setting(50)
SETTINGS = (
    BASELINE,
    Setting(50, 2),
    Setting(50, 4),
    Setting(30),
    Setting(20),
    Setting(20, 2),
    Setting(12),
    Setting(12, 2),
    Setting(8),
)


@dataclass(frozen=True)
class Made:
    """The pictures of a setting, each [H, W, 3] in levels of 255, and whether the judge finds them right."""

    pictures: list[np.ndarray]
    right: list[bool]


def wanted(generations: int, edits: int) -> list[Case]:
    """The cases, generations first. Captions and edits come in pairs: in English and in Chinese."""
    chosen = [one for kind in KINDS for one in cases.editing(kind, -(-edits // len(KINDS)), SEED)]
    return [*cases.generation(GROUP, generations, SEED), *chosen[:edits]]


def make(pipe: DeepGenPipeline, chosen: Sequence[Case], setting: Setting) -> Made:
    """Draw the cases."""
    pictures: list[np.ndarray] = []
    for some in (
        [one for one in chosen if one.edit is None],
        *([one for one in chosen if one.edit is not None and one.group == kind] for kind in KINDS),
    ):
        for start in range(0, len(some), BATCH):
            batch = some[start : start + BATCH]
            pictures += make_images(pipe, batch, setting.steps, GUIDANCE, guidance_every=setting.guidance_every)
    return Made(pictures, [one.right for one in verdicts(pictures, chosen)])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures, in dB."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 20 * math.log10(255) - 10 * math.log10(error) if error else math.inf


def table(generations: int = GENERATIONS, edits: int = EDITS, settings: Sequence[Setting] = SETTINGS) -> str:
    """Measure all settings: a Markdown table.

    Args:
        generations: How many, even.
        edits: How many, even.
        settings: `BASELINE` first.
    """
    torch.set_num_threads(1)
    pipe = load(DEMO_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    chosen = wanted(generations, edits)
    lines = head(
        "setting", "evaluations", "speed-up", "right, generation", "right, edits", "PSNR median", "5 %", "changed"
    )
    baseline: Made | None = None
    for setting in settings:
        made = make(pipe, chosen, setting)
        say(f"{setting}: {len(made.pictures)} pictures")
        rates = [f"{statistics.mean(some):.3f}" for some in (made.right[:generations], made.right[generations:])]
        cells = [setting, f"{setting.evaluations:.1f}", f"{BASELINE.evaluations / setting.evaluations:.2f} x", *rates]
        if baseline is None:
            baseline = made
            lines.append(row(*cells, "(same)", "", 0))
            continue
        found = [psnr(*pair) for pair in zip(made.pictures, baseline.pictures, strict=True)]
        changed = sum(one != other for one, other in zip(made.right, baseline.right, strict=True))
        lines.append(row(*cells, f"{np.median(found):.1f}", f"{np.percentile(found, 5):.1f}", changed))
    return "\n".join(lines)
