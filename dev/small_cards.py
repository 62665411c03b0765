"""Memory of the published model on small cards: ComfyUI's own memory manager on the simulated NPU.

    python -m dev.small_cards [--comfyui VERSION] [--cards 2 4 6 8] [--size 512] [--arithmetic]

For each ComfyUI that is found (COMFYUI_PATH, COMFYUI_PYTHON, as for the tests) and each card, in a process of its own:
an image from text and an edit with one reference, both with guidance, in bfloat16. Besides the given cards there are
one that has room for all weights, and the smallest with ``--novram``, on which nothing but the VAE stays resident.
Prints a line for each time that ComfyUI loads a part:

- *peak*: most bytes on the card until the next part is loaded;
- *resident*: weights of the part on the card, of all that it has, and *others*: those of other parts;
- *activations*: the peak without all of these, but with weights on their way through the card; *estimate*: how much
  the pack asked ComfyUI for;
- *to the card*: bytes that crossed the bus, and those of *a step* of the DiT after the first.

*Full table* are samplings with so many steps that the modulation computed ahead takes all the memory that it may, cut
off after the first. The exit status is 1 if something failed, if the text encoder needs `TEXT_LIMIT` with nothing
resident, or if an estimate is below the peak with all resident.

By default tensors on the card have shapes alone, and weights are zeros that take no memory: what is allocated, and all
that ComfyUI decides, depends on shapes. That takes 2 GiB and less than a minute for a card. Where the host reads a
value from the card it reads "yes", so that ComfyUI scales empty latents, too: one more tensor of their size.

With ``--arithmetic`` weights are random, everything is computed, and the images of all cards are compared, without the
card for all weights. The card's memory is main memory as well: 14 GiB and the size of the card must be free. On two
cores a card takes some ten minutes.

The simulator counts what PyTorch allocates. A real card also has the memory of its driver, workspaces of kernels and
holes between allocations. The random model's tokenizer makes a token of each byte: prompts are longer than published.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepgen_npu.formatting import format_bytes
from dev import ROOT
from dev.comfyui.checkouts import Checkout, all_checkouts, find_checkouts


TEXT_LIMIT = 3 << 29
"""Most bytes for VLM and connector with nothing resident: 1.5 GiB."""
ESTIMATE_LIMIT = 1.3
"""Above so many times the peak, an estimate of the DiT is reported as too large."""
LARGE = 64
"""GiB of the card that has room for everything."""

TEXT = ("vlm", "connector")
HEAD = (
    "run",
    "references",
    "part",
    "peak",
    "resident",
    "others",
    "activations",
    "estimate",
    "to the card",
    "a step",
    "seconds",
)

Row = dict[str, Any]
"""As `dev/comfyui/on_card.py` prints it."""


@dataclass(frozen=True)
class Card:
    """A card of some GiB, and options of ComfyUI."""

    gib: float
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((f"{self.gib:g} GiB", *self.options))


def cards(sizes: list[float], arithmetic: bool) -> list[Card]:
    """What is measured."""
    return [*([] if arithmetic else [Card(LARGE)]), *map(Card, sorted(sizes)), Card(min(sizes), ("--novram",))]


def measure(checkout: Checkout, card: Card, arguments: argparse.Namespace, results: Path) -> tuple[list[Row], int]:
    """Run a card; its rows, and the exit status."""
    plan = {
        "comfyui": str(checkout.path),
        "pack": str(ROOT),
        "card": card.gib,
        "options": card.options,
        "model": arguments.model,
        "size": arguments.size,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "arithmetic": arguments.arithmetic,
        "full_table": card.gib == LARGE,
        "results": str(results),
    }
    script = ROOT / "dev" / "comfyui" / "on_card.py"
    command = [str(checkout.python), "-X", "faulthandler", str(script), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return rows, done.returncode


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for row in rows:
        step = "" if row["step"] is None else format_bytes(row["step"])
        cells = [
            row["run"],
            str(row["references"]),
            row["part"],
            format_bytes(row["peak"]),
            f"{format_bytes(row['resident'])} of {format_bytes(row['weights'])}",
            *(format_bytes(row[key]) for key in ("others", "activations", "estimate", "to_card")),
            step,
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |{' ' + row['error'] if row['error'] else ''}")
    return "\n".join(lines)


def faults(card: Card, rows: list[Row]) -> Iterator[str]:
    """What is not as it should be."""
    if "--novram" in card.options:
        peak = max((row["peak"] for row in rows if row["part"] in TEXT), default=TEXT_LIMIT)
        if peak >= TEXT_LIMIT:
            yield f"the text encoder needs {format_bytes(peak)} with nothing resident"
    if card.gib == LARGE:
        for row in rows:
            if row["estimate"] < row["activations"]:
                yield (
                    f"{row['run']}, {row['references']} references: the estimate of the {row['part']} is "
                    f"{row['estimate'] / row['activations']:.2f} of its peak"
                )


def remarks(card: Card, rows: list[Row]) -> Iterator[str]:
    """What one may want to know."""
    peak = max((row["peak"] for row in rows if row["part"] in TEXT), default=0)
    yield f"text encoder: {format_bytes(peak)} at most"
    if card.gib == LARGE:
        for row in rows:
            if row["run"] == "full table" and row["part"] == "transformer":
                ratio = row["estimate"] / row["activations"]
                verdict = f", above {ESTIMATE_LIMIT}" if ratio > ESTIMATE_LIMIT else ""
                yield f"estimate of the DiT with {row['references']} references: {ratio:.2f} of its peak{verdict}"


def differences(expected: Path, found: Path) -> str:
    """The largest difference of what two cards computed, by run and kind."""
    import torch

    first, second = (torch.load(path, weights_only=True) for path in (expected, found))
    apart = {}
    for run, kinds in first.items():
        for kind, tensors in kinds.items():
            pairs = zip(tensors, second[run][kind], strict=True)
            each = [(one.float() - other.float()).abs().max().item() for one, other in pairs]
            apart[f"{run}, {kind}"] = max(each, default=0.0)
    return ", ".join(f"{name}: {value:.3g}" for name, value in apart.items())


def report(checkout: Checkout, arguments: argparse.Namespace) -> bool:
    """Measure all cards and print the result; whether it is as it should be."""
    sound = True
    with tempfile.TemporaryDirectory(prefix="deepgen-cards-") as temporary:
        first: Path | None = None
        for number, card in enumerate(cards(arguments.cards, arguments.arithmetic)):
            results = Path(temporary, f"{number}.pt")
            rows, status = measure(checkout, card, arguments, results)
            print(f"\n### ComfyUI {checkout.version}, {card}\n\n{table(rows)}\n")
            for line in remarks(card, rows):
                print(f"* {line}")
            if arguments.arithmetic and not status:
                if first:
                    print(f"* differences from the first card: {differences(first, results)}")
                first = first or results
            found = [*([f"it ended with status {status}"] if status else []), *faults(card, rows)]
            for line in found:
                print(f"* FAULT: {line}")
            sys.stdout.flush()
            sound &= not found
    return sound


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", help="version to use, e.g. 0.8.0 (default: those that the tests run on)")
    parser.add_argument("--cards", nargs="+", type=float, default=[2.0, 4.0, 6.0, 8.0], help="memory of each, in GiB")
    parser.add_argument("--size", type=int, default=512, help="sides of the images, in pixels (default: 512)")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--model", default="published", help="size of the random model (default: %(default)s)")
    parser.add_argument("--arithmetic", action="store_true", help="draw weights, compute, and compare images")
    parser.add_argument("--threads", type=int, default=1, help="for the arithmetic (default: 1)")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure what the command line says; the exit status."""
    arguments, sound = parse(), True
    for checkout in all_checkouts() if arguments.comfyui else find_checkouts():
        if arguments.comfyui not in (None, checkout.version):
            continue
        if checkout.problem:
            print(f"{checkout.path}: {checkout.problem}", file=sys.stderr)
        sound &= checkout.problem is None and report(checkout, arguments)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
