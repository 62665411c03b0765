"""Options that several commands have in common."""

from __future__ import annotations

import argparse

from . import arguments as checks


DEFAULT_PROMPT = "a photo of a blue pizza and a yellow baseball glove"


class UsageError(ValueError):
    """A command line that cannot work."""


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_path",
        metavar="DIR",
        help="folder in the layout of DeepGen-1.0-diffusers, or a Hugging Face id, which is downloaded if need be "
        "(default: where `python -m deepgen_npu download` puts the model)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What decides about a picture beside model and prompt, and where it is made."""
    add = parser.add_argument
    add("--height", type=int, help="in pixels (default: what the model was trained at, 512 for DeepGen 1.0)")
    add("--width", type=int, help="in pixels (default: as for the height)")
    add("--seed", type=int, default=42, help="(default: %(default)s)")
    add("--num_inference_steps", type=int, default=50, help="(default: %(default)s)")
    add("--guidance_scale", type=float, default=4.0, help="(default: %(default)s)")
    add(
        "--device",
        default="npu",
        help="npu, npu:N, cuda, cuda:N, cpu, or auto for the best there is (default: %(default)s)",
    )
    add("--dtype", default="auto", choices=checks.DTYPES, help="precision (default: %(default)s)")


def add_placement_options(parser: argparse.ArgumentParser) -> None:
    """Where the parts are, and how the host launches the work."""
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--offload", action="store_true", help="keep only the running part on the device, to save its memory"
    )
    memory.add_argument(
        "--text_encoder_device",
        metavar="DEVICE",
        help="another device for VLM and connector, for instance a second card: --device npu:0 "
        "--text_encoder_device npu:1",
    )
    parser.add_argument(
        "--capture_graph", action="store_true", help="capture the denoising step in a graph of the NPU or GPU"
    )
