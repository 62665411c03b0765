"""How well edits keep the rest: shifts, change masks, seams and times, on photographs with synthetic edits.

    python -m dev.edit_tables [--only registration change global seam outside time] [--photographs 6]

Prints Markdown tables. Photographs, edits and motions are those of `dev.synthetic_edits`; of each photograph up to
512 x 448 pixels are cut. PyTorch computes on one thread.

- *registration*: error of the place of a pixel, mean over the image, in pixels of the drawn image, of the motions that
  were called certain. A third is replaced by another photograph (*third*); colours drift by 12 %, with blur, noise and
  JPEG (*hard*); that with two scales (*scaled*), with another third moved for itself (*moved*), or with 60 % replaced
  and more blur (*60 %*); *night* is darker by far.
- *change*: of the mask, after registration. Recall is over pixels that the edit changed by more than 6 in Lab;
  precision and false positives (*false*, of the rest of the image) are counted `MARGIN` pixels away from the edit,
  since the mask is grown on purpose.
- *global*: edits of the whole image that were told to be that, with the values it is told by.
- *seam*: mean step of the error along the mask's edge, in levels a pixel. The error is that of the composite at
  1.5 times the drawn size, against the same edit without a shift, drift or blur; it is low-passed (sigma 3), and
  its gradient is averaged within 12 pixels of the edge.
- *outside*: pixels where the change mask is 0 whose level in a PNG of 8 bits is not the input's.
- *time*: least of three runs.

All of it takes some three minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from scipy import ndimage

from deepgen_npu.edits.change import Change, compare
from deepgen_npu.edits.colours import lab, length
from deepgen_npu.edits.registration import Motion, register
from deepgen_npu.tools.doctor import processor
from dev.edit_composites import SMALL, WAYS, levels_outside, seams, times
from dev.markdown import head, row, say
from dev.synthetic_edits import (
    GLOBAL,
    HARD,
    LOCAL,
    PHOTOGRAPHS,
    Pair,
    cut,
    distance,
    edited_under,
    moved,
    pairs,
    rectangle,
    redrawn,
    resized,
    size_to_cut,
    tensor,
)


SHIFTS = ((0.0, 0.0), (0.3, -0.7), (2.5, -4.2), (12.0, 7.7))
SCALED = (Motion((1.3, -2.6), (0.02, 0.02)), Motion((3.0, 2.0), (-0.03, 0.03)), Motion((0.0, 0.0), (0.01, -0.01)))
"""Motions of the table of registrations."""

PARTS = (0.01, 0.1, 0.6)
"""Of the image, under a mask."""

MARGIN = 8
"""Pixels around a mask that are neither right nor wrong: it is grown by 4, and blurred edits reach further."""


def _told(table: str, count: int) -> Iterator[Pair]:
    for number, pair in enumerate(pairs(count)):
        say(f"{table}, {PHOTOGRAPHS[number]}")
        yield pair


# Registration


def registration_edits(
    pair: Pair, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[str, Motion, np.ndarray]]:
    """Kind, motion and edit, for all kinds."""
    photo, other = pair[0], resized(pair[1], size)
    for motion in map(Motion, SHIFTS):
        image = cut(photo, size, motion)
        third = edited_under(rectangle(size, 1 / 3, rng), image, "replaced", other)
        yield "third", motion, third
        yield "hard", motion, redrawn(third, rng, **HARD)
        inner = np.pad(rectangle((size[0] - 16, size[1] - 16), 1 / 3, rng), 8)
        part = moved(image, inner, 8, -6)
        yield "moved", motion, redrawn(part, rng, **HARD)
        most = edited_under(rectangle(size, 0.6, rng), image, "replaced", other)
        yield "60 %", motion, redrawn(most, rng, **{**HARD, "blur": 1.2})
        yield "night", motion, redrawn(GLOBAL["night"](image, other), rng)
    for motion in SCALED:
        third = edited_under(rectangle(size, 1 / 3, rng), cut(photo, size, motion), "replaced", other)
        yield "scaled", motion, redrawn(third, rng, **HARD)


def registration_table(count: int) -> list[str]:
    """Errors by kind."""
    errors: dict[str, list[float]] = {}
    number: dict[str, int] = {}
    for pair in _told("registration", count):
        size, rng = size_to_cut(pair[0]), np.random.default_rng(1)
        image = tensor(cut(pair[0], size))
        for kind, motion, edit in registration_edits(pair, size, rng):
            found = register(image, tensor(edit))
            number[kind] = number.get(kind, 0) + 1
            errors.setdefault(kind, []).extend([distance(found.motion, motion, size)] if found.certain else [])
    lines = head("", "pairs", "certain", "error of those, median", "largest")
    for kind in ("third", "hard", "scaled", "moved", "60 %", "night"):
        some = errors[kind] or [float("nan")]
        numbers = (number[kind], len(errors[kind]), f"{np.median(some):.3f}", f"{max(some):.3f}")
        lines.append(row(kind, *numbers))
    return lines


def refusals_table(count: int) -> list[str]:
    """Pairs in which nothing can be registered."""
    images = [resized(pair[0], (448, 512)) for pair in pairs(count)]
    wrong = [register(tensor(one), tensor(other)).certain for one in images for other in images if one is not other]
    return [*head("", "pairs", "certain"), row("different photographs", len(wrong), sum(wrong))]


# Change masks


def change_table(count: int) -> list[str]:
    """Recall, precision and false positives by kind and size of the edit."""
    found: dict[tuple[str, float], list[tuple[float, float, float, bool]]] = {}
    for pair in _told("change", count):
        size, rng = size_to_cut(pair[0]), np.random.default_rng(2)
        image, other = cut(pair[0], size), resized(pair[1], size)
        still, shifted = cut(pair[0], size), cut(pair[0], size, SMALL)
        for part in PARTS:
            mask = rectangle(size, part, rng)
            for kind in LOCAL:
                # The shape of the edit moves with all else.
                there = ndimage.shift(mask.astype(float), SMALL.shift, order=1, mode="nearest") > 0.5
                edit = redrawn(edited_under(there, shifted, kind, other), rng)
                change = compare(tensor(image), tensor(edit)).change
                right = edited_under(mask, still, kind, other)
                found.setdefault((kind, part), []).append(scores(change, mask, image, right))
    lines = head("edit", "of the image", "recall", "lowest", "precision", "lowest", "false", "most", "called global")
    for (kind, part), some in found.items():
        recall, precision, wrong, called = map(np.array, zip(*some, strict=True))
        numbers = [f"{one:.3f}" for one in (recall.mean(), recall.min(), precision.mean(), precision.min())]
        numbers += [f"{wrong.mean():.2%}", f"{wrong.max():.2%}", f"{called.sum()} of {len(some)}"]
        lines.append(row(kind, f"{part:.0%}", *numbers))
    return lines


def scores(change: Change, mask: np.ndarray, image: np.ndarray, right: np.ndarray) -> tuple[float, float, float, bool]:
    """Recall, precision, part of the rest that is marked, and whether it was called global."""
    marked = change.mask.numpy() > 0
    wanted = mask & (length(lab(tensor(image)) - lab(tensor(right))) > 6).numpy()
    far = np.logical_not(ndimage.binary_dilation(mask, iterations=MARGIN))
    recall = (marked & wanted).sum() / max(wanted.sum(), 1)
    precision = 1 - (marked & far).sum() / max(marked.sum(), 1)
    return float(recall), float(precision), float((marked & far).sum() / far.sum()), change.is_global


def global_table(count: int) -> list[str]:
    """Which edits of the whole image are told, and by what."""
    found: dict[str, list[Change]] = {}
    for pair in _told("global", count):
        size, rng = size_to_cut(pair[0]), np.random.default_rng(3)
        image, other = cut(pair[0], size), resized(pair[1], size)
        for kind, change in GLOBAL.items():
            edit = change(cut(pair[0], size, SMALL), other).clip(0, 1)
            if kind == "black and white" and np.ptp(image, -1).max() < 1e-6:
                continue  # a photograph that is grey already
            found.setdefault(kind, []).append(compare(tensor(image), tensor(redrawn(edit, rng))).change)
        found.setdefault("*nothing edited*", []).append(
            compare(tensor(image), tensor(redrawn(cut(pair[0], size, SMALL), rng))).change
        )
    lines = head("edit", "called global", "drift", "part marked", "structure kept elsewhere", "faded")
    for kind, some in found.items():
        ranges = [_range([one.drift for one in some], 1), _range([one.part for one in some], 2)]
        kept, faded = _range([one.kept_structure for one in some], 2), sum(one.faded for one in some)
        lines.append(row(kind, f"{sum(one.is_global for one in some)} of {len(some)}", *ranges, kept, faded))
    return lines


# Composites


def seam_table(count: int) -> list[str]:
    """Steps along the mask's edge, without and with registration and colours carried in."""
    lines = head("edit", *WAYS)
    return lines + [row(kind, *(f"{one:.2f}" for one in steps)) for kind, steps in seams(_told("seam", count)).items()]


def outside_table(count: int) -> list[str]:
    """Levels that change outside of the mask."""
    lines = head("", "pixels outside of the mask", "of them changed", "in per cent")
    for name, (pixels, changed) in levels_outside(_told("outside", count)).items():
        lines.append(row(name, pixels, changed, f"{100 * changed / pixels:.1f}"))
    return lines


def time_table() -> list[str]:
    """Seconds of each part, for two sizes."""
    lines = head("image", "drawn at", "registration", "change mask", "all, put back")
    for (height, width), drawn, seconds in times():
        numbers = (f"{one:.2f} s" for one in seconds)
        lines.append(row(f"{width} x {height}", f"{drawn[1]} x {drawn[0]}", *numbers))
    return lines


# Words


def _range(values: Iterable[float], digits: int) -> str:
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


TABLES: dict[str, tuple[tuple[str, Callable[[int], list[str]]], ...]] = {
    "registration": (("Registration", registration_table), ("What must be refused", refusals_table)),
    "change": (("Change mask", change_table),),
    "global": (("Global edits", global_table),),
    "seam": (("Step along the mask's edge, in levels a pixel", seam_table),),
    "outside": (("Outside of the mask", outside_table),),
    "time": (("Time, on one thread", lambda count: time_table()),),
}
"""By name: titles, and what makes them of so many photographs."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make (default: all)"
    )
    parser.add_argument("--photographs", type=int, default=6, choices=range(1, 7), help="of 6 (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{processor()}; torch {torch.__version__}, one thread", flush=True)
    for name in options.only:
        for title, table in TABLES[name]:
            print(f"\n### {title}\n\n" + "\n".join(table(options.photographs)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
