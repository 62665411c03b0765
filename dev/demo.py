"""Generate images with the demo checkpoint on the CPU, edit them, and show both on one sheet.

python -m dev.demo [--sheet FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


START = time.perf_counter()

from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from deepgen_npu import DeepGenPipeline  # noqa: E402
from deepgen_npu.locations import DEMO_FOLDER  # noqa: E402
from dev import ROOT  # noqa: E402


MODEL = DEMO_FOLDER
FOLDER = ROOT / "demo"
SEED = 42

PAIRS = (
    ("a red circle on the left on a white background", "make it blue"),
    ("a yellow triangle at the top on a black background", "change the background to brown"),
    ("a green square on the right on a gray background", "paint the square orange"),
    ("a purple star in the middle on a white background", "make the background black"),
    ("a small orange circle at the bottom on a brown background", "move it to the top"),
    ("a blue circle on the left and a red square on the right, white background", "remove the blue circle"),
)
"""What is generated, and how it is then edited."""

ENLARGED = 4
COLUMNS = 2
MARGIN = 12
TEXT_LINES = 2
FONT_SIZE = 13


def main() -> None:
    """Make the sheet that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, default=FOLDER / "contact_sheet.png", help="(default: %(default)s)")
    arguments = parser.parse_args()
    pipe = DeepGenPipeline.from_pretrained(MODEL, torch_dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    print(f"The demo checkpoint is loaded after {time.perf_counter() - START:.1f} s. It is not DeepGen 1.0: a small")
    print("model of the same structure that draws coloured shapes (demo_checkpoint/README.md).")

    side = pipe.sizes.trained_side
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (prompt, instruction) in enumerate(PAIRS, start=1):
        start = time.perf_counter()
        image = only(pipe(prompt, height=side, width=side, seed=SEED).images)
        generated = time.perf_counter()
        edited = only(pipe(instruction, image=image, height=side, width=side, seed=SEED).images)
        end = time.perf_counter()
        print(f"{generated - start:5.2f} s  {prompt}\n{end - generated:5.2f} s    {instruction}")
        image.save(arguments.sheet.parent / f"{number}_generated.png")
        edited.save(arguments.sheet.parent / f"{number}_edited.png")
        rows.append(((prompt, image), (instruction, edited)))
    contact_sheet(rows).save(arguments.sheet)
    print(f"Done in {time.perf_counter() - START:.1f} s. The images: {arguments.sheet}")


def only(images) -> Image.Image:
    """The only image of a batch."""
    (image,) = images
    return image


def contact_sheet(pairs) -> Image.Image:
    """Pairs of (text, picture), each picture enlarged without smoothing above its text."""
    font = ImageFont.load_default(FONT_SIZE)
    cell = pairs[0][0][1].width * ENLARGED
    line = FONT_SIZE + 4
    width, height = 2 * cell + MARGIN, cell + (TEXT_LINES * line) + 6
    lines = -(-len(pairs) // COLUMNS)
    size = (COLUMNS * (width + 2 * MARGIN) + MARGIN, lines * (height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, (226, 229, 233))
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs):
        left = MARGIN + (number % COLUMNS) * (width + 2 * MARGIN)
        top = MARGIN + (number // COLUMNS) * (height + MARGIN)
        for column, (text, image) in enumerate(pair):
            x = left + column * (cell + MARGIN)
            big = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST)
            sheet.paste(big, (x, top))
            for row, words in enumerate(wrap(text, font, cell)):
                draw.text((x, top + cell + 4 + row * line), words, font=font, fill=(20, 24, 28))
    return sheet


def wrap(text: str, font, width: int) -> list[str]:
    """The text in lines of at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


if __name__ == "__main__":
    main()
