"""The options of the commands ``generate`` and ``edit``, and of ``inference.py``, which is both."""

from __future__ import annotations

import argparse

from .. import checks
from ..sizes import PAD, STRETCH
from . import options
from .options import (
    DEFAULT_PROMPT,
    add_lora_option,
    add_model_option,
    add_placement_options,
    add_run_options,
)


def add_arguments(parser: argparse.ArgumentParser, editing: bool | None) -> None:
    """Add the options of a command.

    Args:
        parser: Of the command.
        editing: Whether it edits; None where the options decide.
    """
    add = parser.add_argument
    add_model_option(parser)
    if editing:
        add("--prompt", required=True, help="what to change")
    else:
        add("--prompt", default=DEFAULT_PROMPT, help="what to draw, or to change (default: %(default)r)")
    if editing is not False:
        add(
            "--input_image",
            nargs="+",
            action="extend",
            type=options.path("--input_image"),
            metavar="FILE",
            required=bool(editing),
            help="image to edit; further files are further references",
        )
        add(
            "--follow_input",
            nargs="?",
            choices=(PAD, STRETCH),
            const=PAD,
            help="take the size from the input, at about the training area of the model, instead of height and width: "
            "pad (default) fits the input in without distortion and cuts the padding off the image, stretch stretches "
            "the input to the nearest size",
        )
        add(
            "--mask",
            type=options.path("--mask"),
            metavar="FILE",
            help="edit the input only where this image is white, or transparent if it has transparency: each part is "
            "cut out with its surroundings, edited and put back; all else stays as it is, at the size of the input",
        )
        add(
            "--keep_unchanged",
            action="store_true",
            help="take all that the edit left alone from the input, at the size of the input; an edit that changes "
            "everything is saved as it is",
        )
    add("--negative_prompt", default="", help="what to avoid")
    add(
        "--output_image",
        default="output_deepgen.png",
        type=options.path("--output_image"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    add_run_options(parser)
    add(
        "--num_images",
        type=options.integer("--num_images", 1, checks.MAX_IMAGES),
        default=1,
        help="number of images (default: %(default)s)",
    )
    add_lora_option(parser)
    add_placement_options(parser)
    add(
        "--vae_tiling",
        action="store_true",
        help="decode images larger than the VAE's training size in tiles: less memory, slightly different images",
    )
    add(
        "--noise",
        choices=("cpu", "device"),
        default="cpu",
        help="where noise is drawn: cpu gives the same noise on every device, device that of the original "
        "implementation (default: %(default)s)",
    )
    parser.set_defaults(run=_run, input_image=None, follow_input=None, mask=None, keep_unchanged=False)


def _run(arguments: argparse.Namespace) -> int:
    from .image_run import run  # which needs numpy, and that takes longer than help

    return run(arguments)
