"""The commands ``generate`` and ``edit``, and ``inference.py``, which is both.

Arguments are checked and the headers of the checkpoint read before torch is imported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..checkpoint.folder import Checkpoint, resolve_model
from ..checkpoint.prompt_check import check_prompts_for
from ..dtypes import dtype_name
from ..errors import UsageError
from ..formatting import format_bytes, format_size
from ..locations import downloaded_model
from ..lora.file import check_choices
from . import options
from .options import (
    DEFAULT_PROMPT,
    add_lora_option,
    add_model_option,
    add_placement_options,
    add_run_options,
    complain,
)


if TYPE_CHECKING:
    from ..pipeline import DeepGenPipeline


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
            action="store_true",
            help="keep the aspect ratio of the input, at the training area of the model, instead of height and width",
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
    parser.set_defaults(run=_run, input_image=None, follow_input=False)


def _run(arguments: argparse.Namespace) -> int:
    from .. import image_files

    names = arguments.input_image or []
    if arguments.follow_input and not names:
        raise UsageError("--follow_input needs an --input_image: add one.")
    if len(names) > checks.MAX_REFERENCES:
        found = checks.Named(f"{len(names)} files")
        raise UsageError(checks.must_be("--input_image", f"at most {checks.MAX_REFERENCES} files", found))
    outputs = image_files.output_paths(arguments.output_image, arguments.num_images, "--output_image")
    references = [image_files.open_image(Path(name).expanduser(), "--input_image") for name in names]
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
    rules = checkpoint.sizes
    trained_height, trained_width = rules.match_aspect(1, 1, editing=bool(references))
    height = trained_height if arguments.height is None else arguments.height
    width = trained_width if arguments.width is None else arguments.width
    if arguments.follow_input:
        height, width = rules.match_aspect(references[0].height, references[0].width)
    rules.check(height, width, editing=bool(references))
    check_prompts_for(checkpoint, arguments.prompt, arguments.negative_prompt, editing=bool(references))
    check_choices(arguments.lora, checkpoint.configs["transformer"])
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
        "loras": [one.as_dict() for one in arguments.lora],
    }
    image_files.rehearse(outputs, height, width, parameters, "--output_image")

    import torch

    from ..components import device_map
    from ..devices import resolve_device, synchronize

    device = resolve_device(arguments.device)
    devices = device_map(device, arguments.text_encoder_device)
    print(f"Target device: {device}")
    pipe = _load(checkpoint, arguments.dtype, devices, arguments.offload)
    for one in arguments.lora:
        pipe.load_lora_weights(one.path, weight=one.strength)
        print(f"  LoRA: {one}")
    pipe.capture_graph = arguments.capture_graph
    if arguments.vae_tiling:
        pipe.enable_vae_tiling()

    drawn: dict[str, Any] = {"seed": arguments.seed}
    if arguments.noise == "device" and device.type != "cpu":
        drawn = {"generator": torch.Generator(device).manual_seed(arguments.seed)}
    noise = pipe.prepare_latents(arguments.num_images, height, width, **drawn)
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
        "dtype": dtype_name(pipe.dtype),
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
    """Save each image, whether or not the others can be saved, and report where they are; the exit status."""
    from ..image_files import save_somewhere

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
                troubles.append(f"{path} cannot be written ({trouble}); the image is at {place}")
    except KeyboardInterrupt as stopped:
        places = ", ".join(str(place) for place, _ in saved)
        raise type(stopped)(f"Stopped; saved of {len(outputs)} image(s): {places or 'none'}.") from None
    for trouble in troubles:
        complain(trouble)
    # Only now that all images are saved: whoever reads the output may have closed it.
    print(times)
    for place, image in saved:
        size = format_size(image.width, image.height)
        print(f"Image saved at: {place} ({size}, {format_bytes(place.stat().st_size)})")
    return 2 if troubles else 0


def _load(checkpoint: Checkpoint, choice: str, devices: dict[str, Any], offload: bool) -> DeepGenPipeline:
    import torch
    from tqdm.auto import tqdm

    from ..components import require_formats
    from ..devices import resolve_dtype
    from ..pipeline import DeepGenPipeline

    require_formats(checkpoint, devices)
    print(f"Loading pipeline from: {checkpoint.folder}")
    start = time.perf_counter()
    dtype = resolve_dtype(choice, devices["transformer"])
    where = dict.fromkeys(devices, torch.device("cpu")) if offload else devices
    with tqdm(total=checkpoint.nbytes(), desc="Loading weights", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        pipe = DeepGenPipeline.from_checkpoint(checkpoint, dtype, where, on_bytes_read=bar.update)
    if offload:
        pipe.enable_model_cpu_offload(devices["transformer"])
    print(f"All components loaded in {time.perf_counter() - start:.1f}s ({dtype_name(dtype)})")
    for name, part in pipe.memory().items():
        place = f"cpu, on {devices[name]} while it runs" if offload else part.device
        print(f"  {name}: {place}, {format_bytes(part.nbytes)}")
    return pipe
