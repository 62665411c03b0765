"""From a command line to an exit status: the commands, and how errors end them."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence

from .. import npu_setup
from ..errors import DeepGenError
from . import batch, checkpoint, image, options, signals, tools
from .options import Parser, complain, in_lines


def inference(argv: Sequence[str] | None = None) -> int:
    """Run ``inference.py``, which generates, or edits where there is an ``--input_image``.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit status.
    """
    parser = Parser(prog="inference.py", description="Generate an image with DeepGen 1.0, or edit one.")
    image.add_arguments(parser, editing=None)
    return _run(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m deepgen_npu``; arguments and result as for `inference`."""
    parser = Parser(prog="python -m deepgen_npu", description="DeepGen 1.0 on Ascend NPU, CUDA and CPU.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="generate an image from a prompt")
    image.add_arguments(generate, editing=False)
    edit = commands.add_parser("edit", help="edit an image from an instruction")
    image.add_arguments(edit, editing=True)
    checkpoint.add_commands(commands)
    tools.add_commands(commands)
    batch.add_commands(commands)
    return _run(parser, argv)


_EXPLAINED = (
    *(ValueError, TypeError, RuntimeError, ArithmeticError, OSError, MemoryError, ImportError),
    options.OptionError,
)
"""Errors that are shown as a message instead of a traceback."""


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    # Progress bars go to stderr: keep the lines in order where both go to one file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    _show_log()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parser.parse_args(options.with_explicit_value(words) if words[:1] == ["batch"] else words)
        with signals.stoppable():
            # Commands that check something return a status.
            return arguments.run(arguments) or 0
    except _EXPLAINED as error:
        # What the user can fix is shown as a message; anything else keeps its traceback.
        explained = npu_setup.explain_import(error)
        internal = isinstance(error, (RuntimeError, ImportError)) and not isinstance(error, DeepGenError)
        if explained is None and internal:
            raise
        complain(explained or _in_words(error))
        return 2
    except KeyboardInterrupt as stopped:
        # Of a download or of a run that has saved images, the message says what is there.
        print(in_lines(str(stopped) or "Stopped; nothing was written."), file=sys.stderr)
        return signals.exit_status(stopped)


def _show_log() -> None:
    """What the library logs goes to stderr as plain lines, unless the caller has set up logging."""
    logger = logging.getLogger("deepgen_npu")
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{', '.join(names) or 'a file or stream'}: {error.strerror}."
    if isinstance(error, MemoryError):
        return f"This machine has not enough memory{f' ({error})' if str(error) else ''}."
    return str(error) or type(error).__name__
