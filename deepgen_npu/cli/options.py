"""Options that commands share, how their values are read, and how errors are printed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from .. import checks
from ..checks import must_be
from ..dtypes import CHOICES
from ..formatting import split_commands
from ..lora.file import LoraChoice, strength


AUTO = "auto"
"""As many as there are."""

DEFAULT_PROMPT = "a photo of a blue pizza and a yellow baseball glove"

Value = TypeVar("Value")


class OptionError(Exception):
    """A value that an option cannot have. Not a ValueError, whose message argparse would replace by its own."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each, whatever was given."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        super().error(one_line(message))


def complain(message: str) -> None:
    """Print an error to stderr."""
    print(f"error: {in_lines(message)}", file=sys.stderr)


def in_lines(message: str) -> str:
    """A message for the terminal: one line of text, but each command on a line of its own, indented by 4."""
    pieces = [one_line(piece).strip() for piece in split_commands(message)]
    lines = [f"    {piece}" if number % 2 else piece for number, piece in enumerate(pieces)]
    return "\n".join(line for line in lines if line)


def one_line(text: str) -> str:
    """Text in one line without control characters, both of which file names may have."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.splitlines()))


# The ``type`` of options


def option_type(read: Callable[[str], object], check: Callable[[object], Value]) -> Callable[[str], Value]:
    """The ``type`` of an option, for argparse. Errors of the check become an `OptionError`.

    Args:
        read: Makes a value of the option's text; of unreadable text it returns the text.
        check: Returns the checked value, or raises TypeError or ValueError.
    """

    def convert(text: str) -> Value:
        try:
            return check(read(text))
        except (TypeError, ValueError) as error:
            raise OptionError(str(error)) from None

    return convert


def integer(name: str, low: int, high: int, requirement: str = "") -> Callable[[str], int]:
    """An integer in decimal digits, from ``low`` to ``high``."""
    return option_type(_as_int, lambda value: checks.integer(name, value, low, high, requirement))  # pyright: ignore


def number(name: str, low: float, high: float) -> Callable[[str], float]:
    """A finite decimal number, from ``low`` to ``high``."""
    return option_type(_as_float, lambda value: checks.number(name, value, low, high))


def path(name: str) -> Callable[[str], str]:
    """The path of a file or folder, which need not exist."""
    requirement = "the path of a file or folder"

    def check(text: object) -> str:
        text = str(text)
        if not text:
            raise ValueError(must_be(name, requirement, text))
        try:
            os.stat(Path(text).expanduser())
        except (FileNotFoundError, NotADirectoryError):
            pass
        except RuntimeError:
            advice = "The home folder of that user is unknown."
            raise ValueError(must_be(name, requirement, text, advice=advice)) from None
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            raise ValueError(must_be(name, requirement, text, advice=f"{reason[0].upper()}{reason[1:]}.")) from None
        return text

    return option_type(str, check)


def device(name: str, automatic: bool = True) -> Callable[[str], str]:
    """The name of a device, which need not exist.

    Args:
        name: Of the option.
        automatic: Whether it may be ``auto``.
    """
    requirement = "auto, npu, npu:N, cuda, cuda:N or cpu" if automatic else "npu, npu:N, cuda, cuda:N or cpu"

    def check(text: object) -> str:
        if not re.fullmatch(r"(npu|cuda|cpu)(:[0-9]{1,4})?" + ("|auto" if automatic else ""), str(text)):
            raise ValueError(must_be(name, requirement, text))
        return str(text)

    return option_type(str, check)


def lora(name: str) -> Callable[[str], LoraChoice]:
    """A LoRA and its strength: ``FILE`` or ``FILE:STRENGTH``. What exists under the whole text is meant as it is."""
    as_path = path(name)

    def check(text: object) -> LoraChoice:
        text = str(text)
        head, colon, tail = text.rpartition(":")
        if not colon or os.path.lexists(os.path.expanduser(text)):
            return LoraChoice(Path(as_path(text)))
        given = _as_float(tail)
        # "C:\\x.safetensors" has no strength, "x.safetensors:strong" has one that cannot be.
        if isinstance(given, float) or os.path.lexists(os.path.expanduser(head)):
            return LoraChoice(Path(as_path(head)), strength(f"the strength of {name} {head}", given))
        return LoraChoice(Path(as_path(text)))

    return option_type(str, check)


def _as_int(text: str) -> object:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else text


def _as_float(text: str) -> object:
    decimal = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text)
    return float(text) if decimal and len(text) <= 100 else text


# Options


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--model_path``."""
    parser.add_argument(
        "--model_path",
        metavar="DIR",
        type=path("--model_path"),
        help="folder in the layout of DeepGen-1.0-diffusers, or a Hugging Face id, which is downloaded if needed "
        "(default: where `python -m deepgen_npu download` puts the model)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what determines an image besides model and prompt, and the device."""
    add = parser.add_argument
    pixels = f"an integer from 1 to {checks.MAX_SIDE} (pixels)"
    add(
        "--height",
        type=integer("--height", 1, checks.MAX_SIDE, pixels),
        help="in pixels (default: the training size of the model, 512 for DeepGen 1.0)",
    )
    add("--width", type=integer("--width", 1, checks.MAX_SIDE, pixels), help="in pixels (default: as --height)")
    add(
        "--seed",
        type=option_type(_as_int, lambda value: checks.seed(value, "--seed")),  # pyright: ignore
        default=42,
        help="(default: %(default)s)",
    )
    add(
        "--num_inference_steps",
        type=integer("--num_inference_steps", 1, checks.MAX_STEPS),
        default=50,
        help="the work grows with it: 20 is 0.4 of that of 50, and 12 is 0.24. With the demo model, images then "
        "differ little from those of 50; with 8, small things begin to be wrong (default: %(default)s)",
    )
    add(
        "--guidance_scale",
        type=number("--guidance_scale", 0, checks.MAX_GUIDANCE_SCALE),
        default=4.0,
        help="(default: %(default)s)",
    )
    add(
        "--guidance_every",
        type=integer("--guidance_every", 1, checks.MAX_STEPS),
        default=1,
        metavar="N",
        help="evaluate the negative prompt in every Nth step only and keep the difference that it made in between, an "
        "approximation: 2 does 0.75 of the work, 4 does 0.63 (default: %(default)s, exact)",
    )
    add(
        "--device",
        default="npu",
        type=device("--device"),
        help="npu, npu:N, cuda, cuda:N, cpu, or auto for the best available (default: %(default)s)",
    )
    add("--dtype", default="auto", choices=CHOICES, help="precision (default: %(default)s)")


def add_lora_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--lora``."""
    parser.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        type=lora("--lora"),
        action="append",
        default=[],
        help="a LoRA for SD3.5-medium or DeepGen, a .safetensors file or a folder of diffusers or PEFT; its strength "
        "is 1 by default. May be given several times",
    )


def add_placement_options(parser: argparse.ArgumentParser) -> None:
    """Add where the parts are placed, and how the host launches the work."""
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--offload", action="store_true", help="keep only the running part on the device, to save memory"
    )
    memory.add_argument(
        "--text_encoder_device",
        metavar="DEVICE",
        type=device("--text_encoder_device"),
        help="another device for VLM and connector, such as a second card: --device npu:0 --text_encoder_device npu:1",
    )
    parser.add_argument(
        _CAPTURE,
        metavar="auto|on|off",
        nargs="?",
        const=True,
        default=False,
        type=option_type(str, _capture_graph),
        help="capture the denoising step as an NPU or CUDA graph: on (also without a value), off (the default), or "
        "auto: where a measurement, at the first run of its kind on this machine, finds it identical and faster",
    )
    parser.add_argument(
        "--disable_mmap",
        action="store_true",
        help="read all weights into memory. Otherwise those that stay on the CPU in the dtype of the files are mapped "
        "from local disks (Linux), and read at their first use: then a model file that is overwritten in place while "
        "the program runs changes the model, and one that is cut ends the program (SIGBUS); replacing a file by "
        "renaming another onto it is safe",
    )


_CAPTURE = "--capture_graph"
_CAPTURES: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}


def _capture_graph(text: object) -> bool | str:
    return _CAPTURES[checks.one_of(_CAPTURE, text, tuple(_CAPTURES))]


def with_explicit_value(words: Sequence[str]) -> list[str]:
    """The words of a command with a positional argument: ``--capture_graph`` before it has no value."""
    following = [*words[1:], ""]
    return [
        f"{_CAPTURE}=on" if word == _CAPTURE and after not in _CAPTURES else word
        for word, after in zip(words, following, strict=True)
    ]
