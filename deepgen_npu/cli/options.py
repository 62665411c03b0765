"""Options that several commands have in common, and how their values are read: strictly, and before anything else."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from .. import checks
from ..dtypes import CHOICES


DEFAULT_PROMPT = "a photo of a blue pizza and a yellow baseball glove"
Value = TypeVar("Value")


class OptionError(Exception):
    """A value that an option cannot have. No ValueError, of which argparse would tell its own words and the usage."""


class Parser(argparse.ArgumentParser):
    """Whose errors are one line each, whatever was given."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def complain(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    """A message in one line without control characters, which file names may have; for the standard streams."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.splitlines()))


# Kinds of values, for `argparse`. Each error names the option, what was found and what is wanted.


def option_type(read: Callable[[str], object], check: Callable[[object], Value]) -> Callable[[str], Value]:
    """The ``type`` of an option, from what makes a value of its text and what checks the value.

    What the check refuses becomes an `OptionError`.
    """

    def convert(text: str) -> Value:
        try:
            return check(read(text))
        except (TypeError, ValueError) as error:
            raise OptionError(str(error)) from None

    return convert


def whole(name: str, low: int, high: int, wanted: str = "") -> Callable[[str], int]:
    """A whole number in decimal digits."""
    return option_type(_as_int, lambda value: checks.whole(name, value, low, high, wanted))  # pyright: ignore


def number(name: str, low: float, high: float) -> Callable[[str], float]:
    """A finite decimal number."""
    return option_type(_as_float, lambda value: checks.number(name, value, low, high))


def path(name: str) -> Callable[[str], str]:
    """The name of a file or folder that may be there or not."""

    def check(text: object) -> str:
        text = str(text)
        if not text:
            raise ValueError(f"{name} is empty; the name of a file or folder is wanted.")
        try:
            os.stat(Path(text).expanduser())
        except (FileNotFoundError, NotADirectoryError):
            pass
        except RuntimeError:
            raise ValueError(f"{name} is {checks.shown(text)}; the home folder of that user is not known.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{name} is {checks.shown(text)}, which cannot be a file or folder: {reason}.") from None
        return text

    return option_type(str, check)


def device(name: str, automatic: bool = True) -> Callable[[str], str]:
    """The name of a device, which may be there or not."""
    wanted = "auto, npu, npu:N, cuda, cuda:N or cpu" if automatic else "npu, npu:N, cuda, cuda:N or cpu"

    def check(text: object) -> str:
        if not re.fullmatch(r"(npu|cuda|cpu)(:[0-9]{1,4})?" + ("|auto" if automatic else ""), str(text)):
            raise ValueError(f"{name} is {checks.shown(text)}; wanted {wanted}.")
        return str(text)

    return option_type(str, check)


def _as_int(text: str) -> object:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else text


def _as_float(text: str) -> object:
    decimal = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text)
    return float(text) if decimal and len(text) <= 100 else text


# Options


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_path",
        metavar="DIR",
        type=path("--model_path"),
        help="folder in the layout of DeepGen-1.0-diffusers, or a Hugging Face id, which is downloaded if need be "
        "(default: where `python -m deepgen_npu download` puts the model)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What decides about a picture beside model and prompt, and where it is made."""
    add = parser.add_argument
    pixels = f"a whole number of pixels from 1 to {checks.MAX_SIDE}"
    add(
        "--height",
        type=whole("--height", 1, checks.MAX_SIDE, pixels),
        help="in pixels (default: what the model was trained at, 512 for DeepGen 1.0)",
    )
    add("--width", type=whole("--width", 1, checks.MAX_SIDE, pixels), help="in pixels (default: as for the height)")
    add(
        "--seed",
        type=option_type(_as_int, lambda value: checks.seed(value, "--seed")),  # pyright: ignore
        default=42,
        help="(default: %(default)s)",
    )
    add(
        "--num_inference_steps",
        type=whole("--num_inference_steps", 1, checks.MAX_STEPS),
        default=50,
        help="(default: %(default)s)",
    )
    add(
        "--guidance_scale",
        type=number("--guidance_scale", 0, checks.MAX_GUIDANCE_SCALE),
        default=4.0,
        help="(default: %(default)s)",
    )
    add(
        "--device",
        default="npu",
        type=device("--device"),
        help="npu, npu:N, cuda, cuda:N, cpu, or auto for the best there is (default: %(default)s)",
    )
    add("--dtype", default="auto", choices=CHOICES, help="precision (default: %(default)s)")


def add_placement_options(parser: argparse.ArgumentParser) -> None:
    """Where the parts are, and how the host launches the work."""
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--offload", action="store_true", help="keep only the running part on the device, to save its memory"
    )
    memory.add_argument(
        "--text_encoder_device",
        metavar="DEVICE",
        type=device("--text_encoder_device"),
        help="another device for VLM and connector, for instance a second card: --device npu:0 "
        "--text_encoder_device npu:1",
    )
    parser.add_argument(
        "--capture_graph", action="store_true", help="capture the denoising step in a graph of the NPU or GPU"
    )
