"""The command ``batch``: many images from a table of rows."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import checks
from ..sizes import PAD, STRETCH
from ..tools.batch.shards import WHOLE, Shard
from . import options
from .options import (
    AUTO,
    add_lora_option,
    add_model_option,
    add_placement_options,
    add_run_options,
    option_type,
)


def add_commands(commands: Any) -> None:
    """Register the command with those of `cli`."""
    parser = commands.add_parser(
        "batch",
        help="generate and edit the images of a table, on one device or many",
        description="The options of an image are the defaults of rows that do not say it themselves. The same command "
        "again goes on where it was stopped. Exit status: 0; 1 when rows failed; 2 when the run failed.",
    )
    add = parser.add_argument
    add("rows", type=options.path("ROWS"), metavar="ROWS", help="table: .jsonl, .csv, .tsv or .parquet")
    add(
        "--output",
        required=True,
        type=options.path("--output"),
        metavar="DIR",
        help="folder for images and manifest.jsonl; with several machines, one that all share",
    )
    add_model_option(parser)
    add("--negative_prompt", default="", help="what to avoid")
    add_run_options(parser)
    add(
        "--num_images",
        type=options.integer("--num_images", 1, checks.MAX_IMAGES),
        default=1,
        help="images of each row, from its seed and the next ones (default: %(default)s)",
    )
    add("--follow_input", nargs="?", choices=(PAD, STRETCH), const=PAD, help="as of edit, for rows with images")
    add("--keep_unchanged", action="store_true", help="as of edit, for rows with images")
    add_lora_option(parser)
    add_placement_options(parser)
    add("--vae_tiling", action="store_true", help="as of generate")
    work = parser.add_argument_group("work")
    add = work.add_argument
    add("--dry_run", action="store_true", help="check all rows and tell what is to be done, without a model")
    add("--overwrite", action="store_true", help="make images again that were made with other settings")
    add("--keep_errors", action="store_true", help="leave rows as they are that failed before")
    add(
        "--contact_sheet",
        nargs="?",
        type=options.integer("--contact_sheet", 1, MOST_TILES),
        const=100,
        metavar="N",
        help="at the end, draw N of the images on one, contact_sheet.jpg (default: %(const)s)",
    )
    add(
        "--shard",
        type=option_type(str, lambda text: Shard.parse(str(text))),
        default=WHOLE,
        metavar="i/n",
        help="only rows with number mod n = i, for schedulers that start one command for each device",
    )
    add(
        "--workers",
        type=option_type(str, _workers),
        metavar="N",
        help="draw with N workers of Ray, or auto for one for each card; each has a device and a model of its own",
    )
    add("--address", help="of a running cluster of Ray, or auto for the one of this machine")
    add(
        "--worker_resources",
        type=option_type(str, _resources),
        metavar="JSON",
        help='what a worker asks Ray for (default: {"NPU": 1}, {"GPU": 1} or one CPU, by --device)',
    )
    add(
        "--attempts",
        type=options.integer("--attempts", 1, 100),
        default=3,
        help="how often a row is tried whose worker died (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


MOST_TILES = 2500
"""Images on a contact sheet: it has 10,008 x 11,108 pixels then."""


def _workers(text: object) -> int | str:
    """A number, or `AUTO`."""
    if text == AUTO:
        return AUTO
    if not str(text).isdecimal() or not 1 <= int(str(text)) <= 4096:
        raise ValueError(checks.must_be("--workers", "an integer from 1 to 4096, or auto", text))
    return int(str(text))


def _resources(text: object) -> dict[str, float]:
    requirement = 'JSON such as {"NPU": 1}'
    try:
        found = json.loads(str(text))
        return {str(name): checks.number(name, amount, 0, 1024) for name, amount in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(checks.must_be("--worker_resources", requirement, text)) from None


def _run(arguments: argparse.Namespace) -> int:
    from .batch_run import run  # which needs numpy, and that takes longer than help

    return run(arguments)
