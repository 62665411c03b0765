"""The command line: ``inference.py`` and ``python -m deepgen_npu generate|edit|check|download``.

The commands ``doctor``, ``bench`` and ``verify`` are in `tools_cli`.

Arguments are checked, and the checkpoint's headers read, before torch is imported.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import arguments as checks
from . import npu_setup
from .checkpoint import PARTS, Checkpoint, CheckpointError, amount, how_to_download, resolve_model
from .download import MODEL_ID, SOURCES, DownloadError, find_downloaded
from .options import DEFAULT_PROMPT, UsageError, add_model_option, add_placement_options, add_run_options
from .sizes import SizeRules


if TYPE_CHECKING:
    from PIL import Image

    from .pipeline import DeepGenPipeline


def inference(argv: Sequence[str] | None = None) -> int:
    """The command of ``inference.py``: generates, or edits where there is an ``--input_image``."""
    parser = argparse.ArgumentParser(
        prog="inference.py", description="Generate a picture with DeepGen 1.0, or edit one."
    )
    _add_picture_arguments(parser, editing=None)
    return _run(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``python -m deepgen_npu``."""
    parser = argparse.ArgumentParser(
        prog="python -m deepgen_npu", description="DeepGen 1.0 on Ascend NPU, CUDA and CPU."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="generate a picture from a prompt")
    _add_picture_arguments(generate, editing=False)
    edit = commands.add_parser("edit", help="edit a picture as a prompt says")
    _add_picture_arguments(edit, editing=True)

    check = commands.add_parser("check", help="check that a model folder is whole")
    check.add_argument("model_path", help="the folder, or a Hugging Face id that was downloaded")
    check.set_defaults(run=_check)

    download = commands.add_parser("download", help="download DeepGen 1.0 (14 GB), or complete a download")
    download.add_argument("--source", choices=SOURCES, default="huggingface")
    download.add_argument(
        "--to",
        metavar="DIR",
        help="folder that receives the files; by default models/deepgen of the ComfyUI this pack is installed in, "
        "or else the hub's own cache",
    )
    download.set_defaults(run=_download)
    from .tools_cli import add_commands  # which uses this module

    add_commands(commands)
    return _run(parser, argv)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    arguments = parser.parse_args(argv)
    # Progress bars go to stderr: keep the lines in their order also where both go to a file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        # Commands whose result may be bad news return a status.
        return arguments.run(arguments) or 0
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        # What the user can mend reads as one line; anything else keeps its traceback.
        explained = npu_setup.explain_import(error)
        if explained is None and isinstance(error, (RuntimeError, ImportError)) and not _is_for_users(error):
            raise
        print(f"error: {explained or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        # A download tells what is there.
        print(str(stopped) or "Stopped; nothing was written.", file=sys.stderr)
        return 130


def _is_for_users(error: Exception) -> bool:
    # Whatever raised the other two has loaded torch; where it has not, torch may be what does not load.
    names = (("npu", "DeviceError"), ("memory", "OutOfDeviceMemory"))
    modules = ((sys.modules.get(f"{__package__}.{module}"), name) for module, name in names)
    return isinstance(error, (DownloadError, *(getattr(module, name) for module, name in modules if module)))


def _add_picture_arguments(parser: argparse.ArgumentParser, editing: bool | None) -> None:
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
            metavar="FILE",
            required=bool(editing),
            help="picture to edit; further files are further references",
        )
        add(
            "--follow_input",
            action="store_true",
            help="keep the shape of the input, at the area the model was trained at, instead of height and width",
        )
    add("--negative_prompt", default="", help="what to keep away from")
    add("--output_image", default="output_deepgen.png", metavar="FILE", help="(default: %(default)s)")
    add_run_options(parser)
    add("--num_images", type=int, default=1, help="number of pictures (default: %(default)s)")
    add_placement_options(parser)
    add(
        "--vae_tiling",
        action="store_true",
        help="decode in tiles where a picture is larger than the VAE's training size: less memory, slightly "
        "different pictures",
    )
    add(
        "--noise",
        choices=("cpu", "device"),
        default="cpu",
        help="where a seed's noise is drawn: cpu gives the same picture on every device, device the noise of the "
        "original implementation (default: %(default)s)",
    )
    parser.set_defaults(run=_make_picture, input_image=None, follow_input=False)


def _make_picture(arguments: argparse.Namespace) -> None:
    output = _output_path(arguments.output_image)
    references = [_open_picture(name) for name in arguments.input_image or []]
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
    rules = SizeRules.from_checkpoint(checkpoint)
    trained_height, trained_width = rules.follow(1, 1, editing=bool(references))
    height = trained_height if arguments.height is None else arguments.height
    width = trained_width if arguments.width is None else arguments.width
    if arguments.follow_input:
        if not references:
            raise UsageError("--follow_input needs an --input_image.")
        from .images import to_rgb

        upright = to_rgb(references[0])
        height, width = rules.follow(upright.height, upright.width)
    rules.check(height, width, editing=bool(references))
    checks.steps(arguments.num_inference_steps, arguments.guidance_scale)
    checks.positive("num_images", arguments.num_images)
    checks.seed(arguments.seed)

    import torch

    from .devices import resolve_device, synchronize
    from .parts import device_map

    device = resolve_device(arguments.device)
    devices = device_map(device, arguments.text_encoder_device)
    print(f"Target device: {device}")
    pipe = _load(checkpoint, arguments.dtype, devices, arguments.offload)
    pipe.capture_graph = arguments.capture_graph
    if arguments.vae_tiling:
        pipe.enable_vae_tiling()

    if arguments.noise == "device" and device.type != "cpu":
        generator = torch.Generator(device).manual_seed(arguments.seed)
        noise = pipe.prepare_latents(arguments.num_images, height, width, generator=generator)
    else:
        noise = pipe.prepare_latents(arguments.num_images, height, width, seed=arguments.seed)
    steps = arguments.num_inference_steps
    print(f"Starting inference on {device} ({steps} steps)...")
    start = time.perf_counter()
    conditioning = pipe.encode(
        arguments.prompt, references or None, arguments.negative_prompt, height, width, arguments.num_images
    )
    synchronize(device)
    encoded = time.perf_counter()
    latents = pipe.denoise(conditioning, noise, steps, arguments.guidance_scale)
    synchronize(device)
    denoised = time.perf_counter()
    images = pipe.decode(latents, "pil")
    end = time.perf_counter()
    print(
        f"Encoding {encoded - start:.2f}s, denoising {denoised - encoded:.2f}s "
        f"({steps / (denoised - encoded):.2f} it/s), decoding {end - denoised:.2f}s"
    )
    print(f"Inference completed in {end - start:.2f}s")
    parameters = {
        "model": checkpoint.folder.name,
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "input_images": [Path(name).name for name in arguments.input_image or []],
        "height": height,
        "width": width,
        "seed": arguments.seed,
        "noise": arguments.noise,
        "num_inference_steps": steps,
        "guidance_scale": arguments.guidance_scale,
        "device": str(device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "vae_tiling": arguments.vae_tiling,
    }
    for index, image in enumerate(images):
        path = output if len(images) == 1 else output.with_stem(f"{output.stem}_{index + 1}")
        _save(image, path, {**parameters, "index": index})
        size = path.stat().st_size / 1000
        print(f"Image saved at: {path} ({image.width}x{image.height}, {size:.0f} kB)")


def _load(checkpoint: Checkpoint, dtype_name: str, devices: dict[str, Any], offload: bool) -> DeepGenPipeline:
    import torch
    from tqdm.auto import tqdm

    from .bench import sizes_of_parts
    from .devices import resolve_dtype
    from .pipeline import DeepGenPipeline

    print(f"Loading pipeline from: {checkpoint.folder}")
    start = time.perf_counter()
    dtype = resolve_dtype(dtype_name, devices["transformer"])
    where = dict.fromkeys(devices, torch.device("cpu")) if offload else devices
    with tqdm(total=checkpoint.nbytes(), desc="Loading weights", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        pipe = DeepGenPipeline.from_checkpoint(checkpoint, dtype, where, on_bytes_read=bar.update)
    if offload:
        pipe.enable_model_cpu_offload(devices["transformer"])
    print(f"All components loaded in {time.perf_counter() - start:.1f}s ({str(dtype).removeprefix('torch.')})")
    for name, part in sizes_of_parts(pipe).items():
        place = f"cpu, on {devices[name]} while it runs" if offload else part.device
        print(f"  {name}: {place}, {amount(part.nbytes)}")
    return pipe


def _open_picture(name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(name)
        image.load()
    except FileNotFoundError:
        raise UsageError(f"--input_image {name}: there is no such file.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"--input_image {name} cannot be read as a picture ({error}).") from None
    return image


def _output_path(name: str) -> Path:
    """The path to write to, found wrong before minutes are spent on the picture."""
    from PIL import Image

    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"--output_image {name} is a folder; a file name is wanted.")
    writable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in writable:
        raise UsageError(f"--output_image {name}: a name that ends in .png (or .jpg, .webp, ...) is wanted.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--output_image {name}: the folder {path.parent} cannot be written to.")
    return path


def _save(image: Image.Image, path: Path, parameters: dict[str, Any]) -> None:
    """Write beside and rename: an interrupted run leaves the old file or the new one, never half of one."""
    from PIL.PngImagePlugin import PngInfo

    options = {}
    if path.suffix.lower() == ".png":
        text = PngInfo()
        text.add_itxt("deepgen", json.dumps(parameters, ensure_ascii=False))
        options["pnginfo"] = text
    unfinished = path.with_stem(f".{path.stem}.unfinished")
    try:
        image.save(unfinished, **options)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check(arguments: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path))
    print(f"{checkpoint.folder} is whole.")
    for part in PARTS:
        print(f"  {part}: {len(checkpoint.tensors[part])} tensors, {amount(checkpoint.nbytes(part))}")


def _download(arguments: argparse.Namespace) -> None:
    from .download import DownloadStopped, download

    target = Path(arguments.to).expanduser() if arguments.to else _comfyui_target()
    print(f"Downloading {MODEL_ID} from {arguments.source} to {target or 'its cache'} ...")
    folder = download(arguments.source, target)
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        raise CheckpointError(f"The download ended, but: {error}") from None
    except KeyboardInterrupt:
        raise DownloadStopped(f"Stopped; all files are in {folder}, but were not checked as a model.") from None
    print(f"Complete: {checkpoint.folder}")


def downloaded_model() -> Path:
    folder = _comfyui_target()
    if folder is None or not folder.is_dir():
        folder = find_downloaded()
    if folder is None:
        demo = Path(__file__).absolute().parents[1] / "demo_checkpoint"
        hint = f" To try the small demo model: --model_path {demo}" if demo.is_dir() else ""
        raise UsageError(f"No --model_path was given and {MODEL_ID} is not downloaded. {how_to_download()}{hint}")
    return folder


def _comfyui_target() -> Path | None:
    """models/deepgen of the ComfyUI in whose custom_nodes this pack lies, or None."""
    pack = Path(__file__).absolute().parents[1]
    comfyui = pack.parents[1]
    if pack.parent.name == "custom_nodes" and (comfyui / "models").is_dir():
        return comfyui / "models" / "deepgen" / MODEL_ID.split("/")[1]
    return None
