"""What quantised weights cost: sizes, relative errors, and what the project's own judge says of the demo's images.

    python -m dev.quantization_tables [--only sizes files errors demo] [--images 60] [--steps 12]

Prints Markdown tables; unquantised weights are measured in the same run.

- *sizes*: memory and files of the published model by part and format, from its configs, in bfloat16 otherwise;
- *files*: the demo's files;
- *errors*: of a layer of each shape of the published model, with random weights and inputs: the length of the
  difference over the length, of the weight and of what the layer computes. Then the same with outliers;
- *demo*: for each kind of prompt and edit of `training/EVALUATION.md`, on scenes that training never saw, the part of
  the demo's images of which the judge recognises everything. Prompts and seeds are the same for all formats.

*Inputs rounded* is int8 as a GPU with comfy-kitchen and an NPU compute it: inputs are rounded to int8 as well, row by
row. Here comfy-kitchen does so on the CPU.

The exit status is 1 when something is larger than its limit or int8_convrot loses more than `MOST_LOST` points. All of
it takes ten minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from deepgen_npu.checkpoint.quantized import by_stored_names
from deepgen_npu.checkpoint.structure import model_name
from deepgen_npu.checkpoint.weights import home_of
from deepgen_npu.checks import must_be
from deepgen_npu.dtypes import stored_dtype
from deepgen_npu.formatting import format_bytes
from deepgen_npu.locations import DEMO_FOLDER
from deepgen_npu.quantization import layers as quantized_layers
from deepgen_npu.quantization.formats import FORMATS
from deepgen_npu.quantization.layers import summarise
from deepgen_npu.tools.quantize import described, plan, quantize
from deepgen_npu.tools.random_model import RandomModel
from dev.markdown import head, row, say
from dev.quantization_errors import (
    ERRORS,
    ROUNDED,
    ROWS,
    distinct_layers,
    errors_by_outliers,
    errors_by_shape,
    inputs_rounded,
)
from training import cases
from training.cases import Case
from training.edits import FIRST_KINDS, FURTHER_KINDS
from training.evaluate import make_images, verdicts
from training.model import load


GIB = 2**30
ALL_LIMIT, VLM_LIMIT = 8.2, 4.5
"""Most memory of the published model and of its VLM, in GiB, in any format."""
FILES_LIMIT = 0.75
"""Most that the files of the demo's DiT and VLM may take, of what they take unquantised."""
MOST_LOST = 2.0
"""Points that int8_convrot may lose, for all images and for each kind."""

GROUPS = ("core", "star and ring", "small and big", "two objects")
"""Kinds of prompts: those of the evaluation that the demo is trained to draw. Of other sizes it draws 4 or 6 in 10
right, and which ones is chance."""
KINDS = (*FIRST_KINDS, *FURTHER_KINDS)
SEED = 11
"""Of the published evaluation: these are its first prompts."""

PLAIN = "unquantised"


# Sizes


def memory_table(size: str) -> tuple[list[str], list[str]]:
    """Memory of a model by part and format in bfloat16 otherwise, and what is above its limit."""
    lines = head("format", *PARTS, "all", "on a card", "largest part there")
    faults = []
    for title in (None, *FORMATS):
        model = RandomModel.of_size(size, title=title)
        sizes = {part: model.nbytes(torch.bfloat16, part) for part in PARTS}
        on_host = {part: _bytes_on_host(model, part) for part in PARTS}
        on_card = {part: sizes[part] - on_host[part] for part in PARTS}
        largest = max(on_card, key=lambda part: on_card[part])
        numbers = [*sizes.values(), sum(sizes.values()), sum(on_card.values())]
        lines.append(row(title or PLAIN, *map(_gib, numbers), f"{largest}: {_gib(on_card[largest])}"))
        if title is not None:
            faults += _above(f"All parts in {title}", sum(sizes.values()) / GIB, ALL_LIMIT, "GiB")
            faults += _above(f"The VLM in {title}", sizes["vlm"] / GIB, VLM_LIMIT, "GiB")
    return lines, faults


def _bytes_on_host(model: RandomModel, part: str) -> int:
    """Of the tensors that stay on the CPU when the part is on a card."""
    return sum(
        torch.Size(tensor.shape).numel() * torch.bfloat16.itemsize
        for name, tensor in model.checkpoint.tensors[part].items()
        if home_of(model_name(part, name), "card") == "cpu"
    )


def published_files_table(size: str) -> list[str]:
    """Files of a model by part and format, without their headers."""
    lines = head("format", *PARTS, "all")
    for title in (None, *FORMATS):
        model = RandomModel.of_size(size, title=title)
        sizes = [file_bytes(model, part) for part in PARTS]
        lines.append(row(title or PLAIN, *map(_gib, (*sizes, sum(sizes)))))
    return lines


def file_bytes(model: RandomModel, part: str) -> int:
    """Of the files of a part, without their headers."""
    stored = model.checkpoint.tensors[part]
    chosen = by_stored_names(part, stored, model.checkpoint.quantized.get(part, {}))
    tensors = described({name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}, chosen)
    return sum(torch.Size(shape).numel() * stored_dtype(dtype).itemsize for dtype, shape in tensors.values())


def demo_files_table(folder: Path) -> tuple[list[str], list[str]]:
    """Files of the quantised demo in ``folder``, a folder for each format; and what is above its limit."""
    lines = head("format", *PARTS, "all", "transformer and vlm, of unquantised")
    before = Checkpoint.open(DEMO_FOLDER)
    of_two = before.nbytes("transformer", "vlm")
    faults = []
    for title, path in {PLAIN: DEMO_FOLDER, **{title: folder / title for title in FORMATS}}.items():
        checkpoint = Checkpoint.open(path)
        ratio = checkpoint.nbytes("transformer", "vlm") / of_two
        sizes = [checkpoint.nbytes(part) for part in PARTS]
        lines.append(row(title, *map(format_bytes, (*sizes, sum(sizes))), f"{ratio:.3f}"))
        if title != PLAIN:
            faults += _above(f"DiT and VLM of the demo in {title}", ratio, FILES_LIMIT, "of their files")
    return lines, faults


def write_demos(folder: Path) -> None:
    """The demo in each format, in a folder of that name."""
    for title in FORMATS:
        demo = Checkpoint.open(DEMO_FOLDER)
        quantize(demo, folder / title, plan(demo, title, quantized_layers.PARTS))


# Errors


def errors_table(size: str) -> list[str]:
    """Errors of a layer of each shape that a model has."""
    lines = head("part", "layer", "shape", "layers", *ERRORS)
    for layer, errors in errors_by_shape(size):
        say(f"{layer.part} {layer.shape}")
        name, shape = f"`{summarise([layer.name])}`", "{} x {}".format(*layer.shape)
        lines.append(row(layer.part, name, shape, layer.count, *map(_percent, errors)))
    return lines


def outliers_table(shape: tuple[int, int]) -> list[str]:
    """Errors of one shape, for weights and inputs with and without outliers."""
    lines = head("weight", "inputs", *ERRORS)
    for weights, inputs, errors in errors_by_outliers(shape):
        lines.append(row(weights, inputs, *map(_percent, errors)))
    return lines


# The demo


def evaluation(images: int) -> dict[str, list[Case]]:
    """Prompts and edits by kind, so many of each."""
    prompts = {group: cases.generation(group, images, SEED) for group in GROUPS}
    return prompts | {kind: cases.editing(kind, images, SEED) for kind in KINDS}


@dataclass
class Drawn:
    """What one format made: by kind, the images and whether all of each is right."""

    images: dict[str, list[np.ndarray]]
    right: dict[str, list[bool]]

    def percent(self, kinds: Iterable[str]) -> float:
        """Of the images of these kinds, those that are right."""
        return 100 * statistics.mean(one for kind in kinds for one in self.right[kind])


def draw(folder: Path, wanted: dict[str, list[Case]], steps: int, title: str) -> Drawn:
    """Make and judge the images of a checkpoint."""
    pipe = load(folder)
    drawn = Drawn({}, {})
    start = time.monotonic()
    for kind, some in wanted.items():
        drawn.images[kind] = make_images(pipe, some, steps)
        drawn.right[kind] = [one.right for one in verdicts(drawn.images[kind], some)]
        say(f"{title}, {kind}: {drawn.percent([kind]):.1f} % after {time.monotonic() - start:.0f} s")
    return drawn


def demo_table(folder: Path, wanted: dict[str, list[Case]], steps: int) -> tuple[list[str], list[str]]:
    """The judge's numbers for the demo in each format, from the folders in ``folder``; and what is lost too much."""
    first = FORMATS[0]
    made = {PLAIN: draw(DEMO_FOLDER, wanted, steps, PLAIN)}
    for title, path, rounding in (
        (first, first, nullcontext()),
        (first + ROUNDED, first, inputs_rounded()),
        *((title, title, nullcontext()) for title in FORMATS[1:]),
    ):
        with rounding:
            made[title] = draw(folder / path, wanted, steps, title)
    plain = made[PLAIN]
    lines = head("", "images", *made)
    faults = []
    edits = tuple(kind for kind in wanted if kind not in GROUPS)
    prompts = tuple(kind for kind in wanted if kind in GROUPS)
    for name, kinds in (
        *((kind, (kind,)) for kind in prompts),
        ("*text to image*", prompts),
        *((kind, (kind,)) for kind in edits),
        ("*edits*", edits),
        ("**all**", tuple(wanted)),
    ):
        count = sum(len(wanted[kind]) for kind in kinds)
        lines.append(row(name, count, *(f"{one.percent(kinds):.1f}" for one in made.values())))
        for title in (first, first + ROUNDED):
            lost = plain.percent(kinds) - made[title].percent(kinds)
            faults += _above(f"What the demo in {title} loses of {name}", lost, MOST_LOST, "points")
    others = [one for title, one in made.items() if title != PLAIN]
    lines.append(row("right unquantised, wrong here", "", "", *(changed(plain, one) for one in others)))
    lines.append(row("wrong unquantised, right here", "", "", *(changed(one, plain) for one in others)))
    lines.append(row("PSNR to unquantised, median [dB]", "", "", *(f"{_psnr(plain, one):.1f}" for one in others)))
    lines.append(
        row("PSNR that 19 of 20 images reach [dB]", "", "", *(f"{_psnr(plain, one, 5):.1f}" for one in others))
    )
    return lines, faults


def changed(before: Drawn, after: Drawn) -> int:
    """How many images are right before and wrong after."""
    return sum(
        a and not b for kind in before.right for a, b in zip(before.right[kind], after.right[kind], strict=True)
    )


def _psnr(one: Drawn, other: Drawn, percentile: float = 50) -> float:
    """Over the images, of those of one format against those of another."""
    values = []
    for kind, images in one.images.items():
        for a, b in zip(images, other.images[kind], strict=True):
            mse = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
            values.append(10 * np.log10(255**2 / mse) if mse else np.inf)
    return float(np.percentile(values, percentile, method="lower"))


# Words


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _above(name: str, value: float, limit: float, unit: str) -> list[str]:
    return [f"{name}: {value:.3f} {unit}, above the limit of {limit}."] if value > limit else []


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line says; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = ("sizes", "files", "errors", "demo")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, help="tables to make (default: all)")
    parser.add_argument("--images", type=int, default=60, help="of each kind, even (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="of denoising (default: %(default)s)")
    parser.add_argument("--size", default="published", help="of the tables of sizes and errors (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.images < 2 or options.images % 2:
        parser.error(must_be("--images", "even and at least 2", options.images))
    faults: list[str] = []

    def show(title: str, lines: list[str], found: Iterable[str] = ()) -> None:
        faults.extend(found)
        print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)

    if "sizes" in options.only:
        show("Memory in GiB", *memory_table(options.size))
        show("Files in GiB", published_files_table(options.size))
    if "errors" in options.only:
        show(f"Relative errors in percent, {ROWS} inputs", errors_table(options.size))
        shape = distinct_layers(options.size)[-1].shape
        show("The same of {} x {}, by outliers".format(*shape), outliers_table(shape))
    if "files" in options.only or "demo" in options.only:
        with tempfile.TemporaryDirectory(prefix="deepgen-quantized-") as temporary:
            folder = Path(temporary)
            write_demos(folder)
            if "files" in options.only:
                show("The demo's files", *demo_files_table(folder))
            if "demo" in options.only:
                wanted = evaluation(options.images)
                show(f"The demo's images that are right, in percent, at {options.steps} steps",
                     *demo_table(folder, wanted, options.steps))  # fmt: skip
    for fault in faults:
        print(f"\n{fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
