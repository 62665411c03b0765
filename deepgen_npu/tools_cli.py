"""The commands ``doctor``, ``bench`` and ``verify`` of ``python -m deepgen_npu``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import arguments as checks


PROMPT = "a photo of a blue pizza and a yellow baseball glove"


def add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="tell what this machine has and what is wrong with it")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor)


def add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure memory and time on this machine")
    _add_run_arguments(bench)
    bench.add_argument("--runs", type=int, default=5, help="runs after the one for warming up (default: %(default)s)")
    bench.add_argument("--references", type=int, default=0, help="measure an edit with so many (default: generation)")
    bench.add_argument("--capture_graph", action="store_true", help="capture the denoising step in a graph")
    bench.add_argument(
        "--random-weights",
        nargs="?",
        const="published",
        choices=("tiny", "benchmark", "published"),
        help="measure random weights of a size instead of a download (default: of the published size, 14 GB)",
    )
    bench.add_argument("--json", action="store_true", help="for programs")
    bench.set_defaults(run=_bench)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_path", metavar="DIR", help="folder in the layout of DeepGen-1.0-diffusers")
    add("--device", default="npu", help="npu, npu:N, cuda, cuda:N, cpu or auto (default: %(default)s)")
    add("--dtype", default="auto", choices=checks.DTYPES, help="precision (default: %(default)s)")
    add("--prompt", default=PROMPT, help="(default: %(default)r)")
    add("--height", type=int, help="in pixels (default: what the model was trained at)")
    add("--width", type=int, help="in pixels (default: what the model was trained at)")
    add("--seed", type=int, default=42, help="(default: %(default)s)")
    add("--num_inference_steps", type=int, default=50, help="(default: %(default)s)")
    add("--guidance_scale", type=float, default=4.0, help="(default: %(default)s)")


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    found = doctor.examine()
    print(doctor.as_json(found) if arguments.json else doctor.as_text(found))
    return 0 if found.healthy else 1


def _bench(arguments: argparse.Namespace) -> None:
    raise NotImplementedError(json, sys, time, Path)
