"""The commands ``check``, ``download`` and ``quantize``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.folder import PARTS, Checkpoint, resolve_model
from ..errors import CheckpointError, UsageError
from ..formatting import format_bytes
from ..hub.download import DOWNLOAD_SIZE, MODEL_ID, SOURCES
from ..locations import comfyui_target
from ..quantization.formats import FORMATS, quantized_title
from ..quantization.layers import PARTS as QUANTIZED_PARTS
from . import options


def add_commands(commands: Any) -> None:
    """Register the commands with those of `entry`."""
    check = commands.add_parser("check", help="check that a model folder is complete")
    check.add_argument(
        "model_path", type=options.path("model_path"), help="a folder, or the Hugging Face id of a downloaded model"
    )
    check.set_defaults(run=_check)

    download = commands.add_parser("download", help=f"download DeepGen 1.0, {DOWNLOAD_SIZE}, or complete a download")
    download.add_argument("--source", choices=SOURCES, default="huggingface")
    download.add_argument(
        "--to",
        metavar="DIR",
        type=options.path("--to"),
        help="folder for the files (default: models/deepgen of the ComfyUI this pack is installed in, otherwise the "
        "hub's own cache)",
    )
    download.set_defaults(run=_download)
    _add_quantize(commands)


def _add_quantize(commands: Any) -> None:
    quantize = commands.add_parser(
        "quantize",
        help="write a model with weights of half the size",
        description="Writes a model folder in the same layout with quantised layers, which all commands and the "
        "loader in ComfyUI take. Layers that would lose too much, or whose width does not fit, stay as they are and "
        "are listed.",
    )
    add = quantize.add_argument
    add(
        "source",
        metavar="SOURCE",
        type=options.path("SOURCE"),
        help="a model folder, or the Hugging Face id of a downloaded model",
    )
    add(
        "target",
        metavar="TARGET",
        type=options.path("TARGET"),
        help="a new folder; or a new file that ends with .safetensors: then the DiT alone, with the names of "
        "ComfyUI's SD3, for models/diffusion_models (it draws from text; references need the folder)",
    )
    add(
        "--format",
        choices=FORMATS,
        required=True,
        help="int8_convrot: exact also where a few weights or inputs are large; int8: the same without rotation; "
        "fp8: float8, not for NPUs. Ascend NPUs compute with both kinds of int8",
    )
    add(
        "--part",
        action="append",
        choices=QUANTIZED_PARTS,
        help="quantise this part only; repeatable (default: all three)",
    )
    quantize.set_defaults(run=_quantize)


def _quantize(arguments: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from ..tools.quantize import as_text, plan, quantize
    from ..tools.single_file import require_sd3, write_transformer

    source = Checkpoint.open(resolve_model(arguments.source))
    target = Path(arguments.target).expanduser()
    single = target.suffix == ".safetensors"
    parts = list(dict.fromkeys(arguments.part or (("transformer",) if single else QUANTIZED_PARTS)))
    if single:
        require_sd3(source)
        if parts != ["transformer"]:
            raise UsageError("A .safetensors TARGET has the DiT alone: leave --part out, or name a folder.")
    plans = plan(source, arguments.format, parts)
    total = source.nbytes("transformer") if single else source.nbytes()
    with tqdm(total=total, desc="Quantising", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        if single:
            write_transformer(source, target, plans["transformer"], bar.update)
        else:
            quantize(source, target, plans, bar.update)
    print(as_text(plans))
    print(f"Written to: {target}")


def _check(arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path))
    print(f"{checkpoint.folder} is complete.")
    for part in PARTS:
        quantized = quantized_title(checkpoint.quantized[part])
        size = f"{len(checkpoint.tensors[part])} tensors, {format_bytes(checkpoint.nbytes(part))}"
        print(f"  {part}: {size}{f', {quantized}' if quantized else ''}")


def _download(arguments: argparse.Namespace) -> None:
    from ..hub.download import DownloadStopped, download

    target = Path(arguments.to).expanduser() if arguments.to else comfyui_target()
    print(f"Downloading {MODEL_ID} from {arguments.source} to {target or 'its cache'} ...")
    folder = download(arguments.source, target)
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        raise CheckpointError(f"The download finished, but the folder is not valid: {error}") from None
    except KeyboardInterrupt:
        raise DownloadStopped(f"Stopped. All files are in {folder}, but they were not checked.") from None
    print(f"Complete: {checkpoint.folder}")
