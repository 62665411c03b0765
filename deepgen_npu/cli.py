"""The command line: ``inference.py`` and ``python -m deepgen_npu generate|edit|check|download``.

The commands ``doctor``, ``bench`` and ``verify`` are in `tools_cli`.

Arguments are checked, and the checkpoint's headers read, before torch is imported.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import arguments as checks
from . import npu_setup, options, signals
from .checkpoint import PARTS, Checkpoint, CheckpointError, amount, how_to_download, resolve_model
from .download import MODEL_ID, SOURCES, DownloadError, find_downloaded
from .options import DEFAULT_PROMPT, Parser, UsageError, add_model_option, add_placement_options, add_run_options
from .prompts import check_prompts_for
from .sizes import SizeRules


if TYPE_CHECKING:
    from .pipeline import DeepGenPipeline


def inference(argv: Sequence[str] | None = None) -> int:
    """The command of ``inference.py``: generates, or edits where there is an ``--input_image``."""
    parser = Parser(prog="inference.py", description="Generate a picture with DeepGen 1.0, or edit one.")
    _add_picture_arguments(parser, editing=None)
    return _run(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of ``python -m deepgen_npu``."""
    parser = Parser(prog="python -m deepgen_npu", description="DeepGen 1.0 on Ascend NPU, CUDA and CPU.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="generate a picture from a prompt")
    _add_picture_arguments(generate, editing=False)
    edit = commands.add_parser("edit", help="edit a picture as a prompt says")
    _add_picture_arguments(edit, editing=True)

    check = commands.add_parser("check", help="check that a model folder is whole")
    check.add_argument(
        "model_path", type=options.path("model_path"), help="the folder, or a Hugging Face id that was downloaded"
    )
    check.set_defaults(run=_check)

    download = commands.add_parser("download", help="download DeepGen 1.0 (14 GB), or complete a download")
    download.add_argument("--source", choices=SOURCES, default="huggingface")
    download.add_argument(
        "--to",
        metavar="DIR",
        type=options.path("--to"),
        help="folder that receives the files; by default models/deepgen of the ComfyUI this pack is installed in, "
        "or else the hub's own cache",
    )
    download.set_defaults(run=_download)
    from .tools_cli import add_commands  # which uses this module

    add_commands(commands)
    return _run(parser, argv)


_TOLD = (
    *(ValueError, TypeError, RuntimeError, ArithmeticError, OSError, MemoryError, ImportError),
    options.OptionError,
)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    # Progress bars go to stderr: keep the lines in their order also where both go to a file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        arguments = parser.parse_args(argv)
        with signals.stoppable():
            # Commands whose result may be bad news return a status.
            return arguments.run(arguments) or 0
    except _TOLD as error:
        # What the user can mend reads as one line; anything else keeps its traceback.
        explained = npu_setup.explain_import(error)
        if explained is None and isinstance(error, (RuntimeError, ImportError)) and not _is_for_users(error):
            raise
        _complain(explained or _in_words(error))
        return 2
    except KeyboardInterrupt as stopped:
        # A download tells what is there.
        print(str(stopped) or "Stopped; nothing was written.", file=sys.stderr)
        return signals.exit_status(stopped)


def _complain(message: str) -> None:
    print(f"error: {options.one_line(message)}", file=sys.stderr)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{', '.join(names) or 'a file or stream'}: {error.strerror}."
    if isinstance(error, MemoryError):
        return f"The memory of this machine does not suffice{f' ({error})' if str(error) else ''}."
    return str(error) or type(error).__name__


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
            action="extend",
            type=options.path("--input_image"),
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
        type=options.whole("--num_images", 1, checks.MAX_IMAGES),
        default=1,
        help="number of pictures (default: %(default)s)",
    )
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


def _make_picture(arguments: argparse.Namespace) -> int:
    from . import image_files

    names = arguments.input_image or []
    if arguments.follow_input and not names:
        raise UsageError("--follow_input needs an --input_image.")
    if len(names) > checks.MAX_REFERENCES:
        raise UsageError(f"--input_image names {len(names)} files; at most {checks.MAX_REFERENCES} are wanted.")
    outputs = image_files.output_paths(arguments.output_image, arguments.num_images, "--output_image")
    references = [image_files.open_image(Path(name).expanduser(), "--input_image") for name in names]
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
    rules = SizeRules.from_checkpoint(checkpoint)
    trained_height, trained_width = rules.follow(1, 1, editing=bool(references))
    height = trained_height if arguments.height is None else arguments.height
    width = trained_width if arguments.width is None else arguments.width
    if arguments.follow_input:
        height, width = rules.follow(references[0].height, references[0].width)
    rules.check(height, width, editing=bool(references))
    check_prompts_for(checkpoint, arguments.prompt, arguments.negative_prompt, editing=bool(references))
    parameters = {
        "model": checkpoint.folder.name,
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "input_images": [Path(name).name for name in names],
        "height": height,
        "width": width,
        "seed": arguments.seed,
        "noise": arguments.noise,
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
    }
    image_files.rehearse(outputs, height, width, parameters, "--output_image")

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
    parameters |= {
        "device": str(device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "vae_tiling": arguments.vae_tiling,
    }
    return _save_all(
        images,
        outputs,
        parameters,
        f"Encoding {encoded - start:.2f}s, denoising {denoised - encoded:.2f}s "
        f"({steps / (denoised - encoded):.2f} it/s), decoding {end - denoised:.2f}s\n"
        f"Inference completed in {end - start:.2f}s",
    )


def _save_all(images: Any, outputs: Sequence[Path], parameters: dict[str, Any], times: str) -> int:
    """Save the pictures, each whatever becomes of the others, and tell where they are; the exit status."""
    from .image_files import save_somewhere

    saved, troubles = [], []
    try:
        for index, (image, path) in enumerate(zip(images, outputs, strict=True)):
            try:
                place, trouble = save_somewhere(image, path, {**parameters, "index": index})
            except ValueError as error:
                troubles.append(str(error))
                continue
            saved.append((place, image))
            if trouble is not None:
                troubles.append(f"{path} cannot be written ({trouble}); the picture is at {place}")
    except KeyboardInterrupt as stopped:
        told = ", ".join(str(place) for place, _ in saved)
        raise type(stopped)(f"Stopped; saved of {len(outputs)} picture(s): {told or 'none'}.") from None
    for trouble in troubles:
        _complain(trouble)
    # After all is saved: whoever reads the output may have left.
    print(times)
    for place, image in saved:
        print(f"Image saved at: {place} ({image.width}x{image.height}, {place.stat().st_size / 1000:.0f} kB)")
    return 2 if troubles else 0


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
