"""What the project's own judge says of the demo's edits in canvases larger than those that it was trained with.

    python -m dev.edit_judge [--images 20] [--steps 12]

Prints Markdown tables. The scenes are those of the evaluation, which training never saw, at 8 and 16 times the size
that the demo draws; the judge sees each at the size of the scene.

- *kept*: the same edit as it was drawn, and put back with ``keep_unchanged``. *Global* edits are not composited;
  *moved* are edits of which a shift was undone: none, since the scenes have no texture that would tell one.
- *mask*: the left half of a canvas of two scenes is edited under a mask; the right half is another scene.
  *Pixels changed* are those of the right half, of all canvases.

The exit status is 1 when a pixel changed that must stay, or when more than `MOST_LOST` edits of 100 are wrong that
were right as they were drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from deepgen_npu import DeepGenPipeline
from deepgen_npu.edits.boxes import Box
from deepgen_npu.edits.fitting import Fit
from deepgen_npu.edits.region import Region, plan
from deepgen_npu.edits.run import EditedImage, edit_regions
from deepgen_npu.images import unit_pixels
from deepgen_npu.locations import DEMO_FOLDER
from dev.markdown import head, row, say
from training import cases
from training.cases import Case
from training.judge import compare, recognise
from training.model import load
from training.scenes import pixels


KINDS = ("recolour", "replace", "remove", "move", "add", "background")
SCALES = (8, 16)
"""Pixels of a canvas along each side of a pixel of the scene."""

SEED = 11
"""Of the published evaluation."""

MOST_LOST = 5.0
"""Edits of 100 that may be wrong once they are put back."""


@dataclass
class Counts:
    """Of the edits of one kind."""

    images: int = 0
    drawn: int = 0
    right: int = 0
    is_global: int = 0
    moved: int = 0
    kept: float = 0.0
    wrong_pixels: int = 0


class Painter:
    """Draws one case, and keeps what it drew."""

    def __init__(self, pipe: DeepGenPipeline, case: Case, steps: int):
        self.pipe, self.case, self.steps = pipe, case, steps
        self.drawn = torch.empty(0)

    def __call__(self, shown: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
        """As `edits.run.Draw`."""
        (image,) = shown
        output = self.pipe(
            self.case.text,
            image,
            height=height,
            width=width,
            seed=self.case.seed,
            num_inference_steps=self.steps,
            output_type="pt",
        )
        assert isinstance(output.images, torch.Tensor)
        self.drawn = output.images
        return self.drawn


def canvas(case: Case, scale: int) -> torch.Tensor:
    """The scene of an edit, each pixel a square: [3, H, W] in [0, 1]."""
    assert case.edit is not None
    return unit_pixels(Image.fromarray(np.kron(pixels(case.edit.sources[0]), np.ones((scale, scale, 1), np.uint8))))


def is_right(image: torch.Tensor, case: Case) -> bool:
    """Whether an image [3, H, W] shows the scene that the edit should give."""
    size = case.scene.width, case.scene.height
    levels = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    return compare(recognise(levels.resize(size, Image.Resampling.BOX)), case.scene).right


def changed_pixels(edit: EditedImage, before: torch.Tensor) -> int:
    """Pixels that the change mask calls the image's own, and are not."""
    return int(((edit.image != before).any(0) & (edit.change_mask == 0)).sum())


def kept(pipe: DeepGenPipeline, case: Case, scale: int, steps: int, counts: Counts) -> None:
    """One edit of a canvas with ``keep_unchanged``."""
    image, painter = canvas(case, scale), Painter(pipe, case, steps)
    height, width = image.shape[-2:]
    fit = Fit.padded(height, width, *pipe.sizes.least_padding(height, width))
    (edit,) = edit_regions(image, [Region.whole(height, width, fit)], painter, keep_unchanged=True)
    (found,) = edit.kept.regions
    counts.images += 1
    counts.drawn += is_right(painter.drawn[0], case)
    counts.right += is_right(edit.image, case)
    counts.is_global += found.global_edit
    counts.moved += any(found.shift) or any(found.scale)
    counts.kept += edit.kept.part
    counts.wrong_pixels += changed_pixels(edit, image)


def under_mask(pipe: DeepGenPipeline, case: Case, other: Case, scale: int, steps: int, counts: Counts) -> None:
    """One edit of the left half of a canvas."""
    image = torch.cat([canvas(case, scale), canvas(other, scale)], 2)
    height, width = image.shape[-2:]
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    painter = Painter(pipe, case, steps)
    regions = plan(mask, pipe.sizes, context=1.0)
    assert [region.box for region in regions] == [Box(0, 0, height, width // 2)]
    (edit,) = edit_regions(image, regions, painter, mask)
    counts.images += 1
    counts.drawn += is_right(painter.drawn[0], case)
    counts.right += is_right(edit.image[..., : width // 2], case)
    counts.kept += edit.kept.part
    counts.wrong_pixels += int((edit.image != image).any(0)[:, width // 2 :].sum())


def tables(images: int, steps: int) -> tuple[list[str], list[str]]:
    """Both tables, and what is wrong."""
    pipe = load(DEMO_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    lines = head("edit", "canvas", "edits", "right as drawn", "right with the rest kept", "global", "moved", "kept")
    masked = head("edit", "canvas", "edits", "right as drawn", "right in the canvas", "pixels changed")
    faults = []
    for kind in KINDS:
        wanted = [case for case in cases.editing(kind, images, SEED) if case.edit and len(case.edit.sources) == 1]
        for scale in SCALES:
            one, two = Counts(), Counts()
            for number, case in enumerate(wanted):
                kept(pipe, case, scale, steps, one)
                under_mask(pipe, case, wanted[number - 1], scale, steps, two)
            say(f"{kind} x {scale}")
            size = f"{scale * 64} x {scale * 64}"
            rates = [f"{100 * value / one.images:.0f} %" for value in (one.drawn, one.right)]
            kept_part = f"{100 * one.kept / one.images:.1f} %"
            lines.append(row(kind, size, one.images, *rates, one.is_global, one.moved, kept_part))
            rates = [f"{100 * value / two.images:.0f} %" for value in (two.drawn, two.right)]
            size = f"{scale * 128} x {scale * 64}"
            masked.append(row(kind, size, two.images, *rates, two.wrong_pixels))
            for name, counts in ((f"{kind}, kept", one), (f"{kind}, mask", two)):
                if counts.wrong_pixels:
                    faults.append(f"{name}: {counts.wrong_pixels} pixels changed that must not.")
                lost = 100 * (counts.drawn - counts.right) / counts.images
                if lost > MOST_LOST:
                    faults.append(f"{name}: {lost:.0f} of 100 edits are wrong that were right as drawn.")
    return ["### With keep_unchanged", "", *lines, "", "### Under a mask", "", *masked], faults


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20, help="edits of each kind, even (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="of denoising (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines, faults = tables(options.images, options.steps)
    print("\n".join(lines))
    for fault in faults:
        print(f"\n{fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
