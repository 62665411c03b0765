"""The evaluation as a table for the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .speed import RUNS


_ASKED = ("background", "colour", "place", "shape", "size", "count", "right")

AIMS = {"background": 0.97, "colour": 0.95, "place": 0.90, "shape": 0.90}
"""What the demo has to reach in the core, by column."""
EDIT_AIM = 0.90
JUDGE_AIM, VAE_AIM = 0.99, 0.97


def percent(value: float) -> str:
    """A part as percent, with one decimal."""
    return f"{100 * value:.1f}"


def table(result: dict[str, Any], log: list[dict[str, Any]]) -> str:
    """Markdown, from `evaluate.everything` and the log of the training."""
    lines = [
        "# What the demo checkpoint can do",
        "",
        "Measured by `python -m training evaluate` on scenes that training never saw (one in seven combinations of",
        "shape, colour, place and background is held out), at 50 steps and guidance 4.0, half of the texts in English",
        "and half in Chinese. Each number is the part of the images, in percent, of which a judge that measures",
        "pixels (`training/judge.py`) reads the fact correctly; *all* is the part where everything is right.",
        "",
        "## Judge and VAE",
        "",
        "| | core | core and extended | aim |",
        "|---|---|---|---|",
        _row("rendered scenes", *map(percent, result["judge"].values()), f">= {percent(JUDGE_AIM)}"),
        _row(
            f"after encoding and decoding ({result['vae']['psnr']:.1f} dB)",
            percent(result["vae"]["core"]),
            percent(result["vae"]["core and extended"]),
            f">= {percent(VAE_AIM)}",
        ),
        "",
        "## Text to image",
        "",
        _row("", "images", "background", "colour", "place", "shape", "size", "number", "all", "all, English",
             "all, Chinese"),
        "|" + "---|" * 11,
    ]  # fmt: skip
    for group, values in result["generate"].items():
        lines.append(_row(group, values["images"], *(percent(values[name]) for name in _ASKED), *_languages(values)))
    aims = [f">= {percent(AIMS[name])}" if name in AIMS else "" for name in _ASKED]
    lines += [
        _row("*aim of the core*", "", *aims, "", "within 5 points"),
        "",
        "Core: one circle, square or triangle of normal size at 64 x 64. *As sentences*: with a capital at the",
        "start and a full stop at the end. Each row below extends the core in one way.",
        "",
        "## Edits",
        "",
        "*all*: the instruction was followed, and everything that it does not name has stayed.",
        "",
        _row("", "images", *_NAMES, "all, English", "all, Chinese", "aim (all)"),
        "|" + "---|" * (len(_NAMES) + 5),
    ]
    for kind, values in result["edit"].items():
        aim = f">= {percent(EDIT_AIM)}" if kind in ("recolour", "background") else ""
        cells = (percent(values[name]) for name in _ASKED)
        lines.append(_row(kind, values["images"], *cells, *_languages(values), aim))
    lines += [
        "",
        "*combine* puts the shape of the first reference on the background of the second.",
        "",
        "## Guidance and negative prompt",
        "",
        _row("guidance", "background", "colour", "place", "shape", "all", "difference to 4.0"),
        "|" + "---|" * 7,
    ]
    for guidance, values in result["guidance"].items():
        names = ("background", "colour", "place", "shape", "right")
        difference = f"{values['difference']:.2f}"
        lines.append(_row(guidance, *(percent(values[name]) for name in names), difference))
    negative = result["negative"]
    lines += [
        "",
        "*Difference*: mean absolute difference in levels of 0 to 255, with the same noise.",
        "",
        f"Prompts that name no colour give a red shape in {percent(negative['none'])} % of the images, and in "
        f'{percent(negative["red"])} % with the negative prompt "red".',
        "",
        "## Speed",
        "",
        f"On {result['speed']['threads']} threads of a CPU: {result['speed']['generate']:.2f} s for an image and "
        f"{result['speed']['edit']:.2f} s for an",
        f"edit (50 steps, float32, medians of {RUNS}), {result['speed']['command']:.1f} s for the whole command "
        "`python -m deepgen_npu generate`, with",
        "imports and loading.",
        "",
        "## Accuracy against training time",
        "",
        "Evaluated with 60 images of the core during the training of the DiT, at 25 steps, with the running",
        "average of the weights.",
        "",
        _row("minutes", "steps", "background", "colour", "place", "shape", "recolour", "background edit", "keep"),
        "|" + "---|" * 9,
        *_curve(log),
        "",
    ]
    return "\n".join(lines)


_NAMES = ("background", "colour", "place", "shape", "size", "number", "all")


def _languages(values: dict[str, Any]) -> tuple[str, str]:
    return percent(values["en"]["right"]), percent(values["zh"]["right"])


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _curve(log: list[dict[str, Any]]) -> list[str]:
    entries: dict[int, dict[str, Any]] = {}
    for entry in log:
        if entry.get("stage") == "dit" and "task" in entry:
            row = entries.setdefault(entry["step"], {"minutes": entry["seconds"] / 60})
            row |= {f"{entry['task']} {name}": value for name, value in entry.items()}
    names = ["generate background", "generate colour", "generate place", "generate shape"]
    names += ["edit recolour", "edit background", "edit keep"]
    return [
        _row(f"{row['minutes']:.0f}", step, *(percent(row[name]) if name in row else "" for name in names))
        for step, row in sorted(entries.items())
    ]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines that `progress.Log` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
