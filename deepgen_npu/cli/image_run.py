"""What ``generate`` and ``edit`` do.

Arguments are checked and the headers of the checkpoint read before torch is imported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, image_files
from ..checkpoint.folder import Checkpoint, resolve_model
from ..checkpoint.prompt_check import check_prompts_for
from ..dtypes import dtype_name
from ..errors import UsageError
from ..formatting import format_bytes, format_size
from ..image_request import ImageRequest
from ..locations import downloaded_model
from ..lora.file import check_choices
from ..sizes import STRETCH
from .options import complain


if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..pipeline import DeepGenPipeline


class Laps:
    """Seconds of the stages of a run, however often they ran."""

    def __init__(self, synchronize: Callable[[], None]):
        self._synchronize = synchronize
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._denoised = 0

    def add(self, stage: str) -> None:
        """A stage has ended."""
        self._synchronize()
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._denoised += stage == "denoise"
        self._last = now

    def report(self, steps: int) -> str:
        """The times, with the steps a second of all denoising."""
        encode, denoise, decode = (self._seconds.get(stage, 0.0) for stage in ("encode", "denoise", "decode"))
        speed = steps * self._denoised / denoise if denoise else 0.0
        return (
            f"Encoding {encode:.2f}s, denoising {denoise:.2f}s ({speed:.2f} it/s), decoding {decode:.2f}s\n"
            f"Inference completed in {self._last - self._start:.2f}s"
        )


def run(arguments: argparse.Namespace) -> int:
    """Draw the images and save them; the exit status.

    Raises:
        UsageError: For options that do not go together.
        FileError, CheckpointError, LoraError, TypeError, ValueError: For values that cannot work.
    """
    names = _check_options(arguments)
    outputs = image_files.output_paths(arguments.output_image, arguments.num_images, "--output_image")
    references = [image_files.open_image(Path(name).expanduser(), "--input_image") for name in names]
    mask = image_files.open_mask(Path(arguments.mask).expanduser(), "--mask") if arguments.mask else None
    checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
    request = ImageRequest(
        checkpoint.sizes,
        references,
        mask,
        arguments.keep_unchanged,
        arguments.follow_input,
        arguments.height,
        arguments.width,
    )
    size = request.size
    check_prompts_for(checkpoint, arguments.prompt, arguments.negative_prompt, editing=bool(references))
    check_choices(arguments.lora, checkpoint.configs["transformer"])
    parameters = {
        "model": checkpoint.folder.name,
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "input_images": [Path(name).name for name in names],
        "mask": Path(arguments.mask).name if arguments.mask else None,
        "keep_unchanged": arguments.keep_unchanged,
        "height": size[0],
        "width": size[1],
        "seed": arguments.seed,
        "noise": arguments.noise,
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        **({"guidance_every": arguments.guidance_every} if arguments.guidance_every > 1 else {}),
        "loras": [one.as_dict() for one in arguments.lora],
    }
    image_files.rehearse(outputs, *request.result_size, parameters, "--output_image")

    from ..devices import synchronize
    from ..editing import Drawing

    plan = request.plan  # what there is to draw is known before the weights are read
    if plan is not None and len(plan.regions) > 1:
        print(f"The mask has {len(plan.regions)} regions, which are edited one after the other.")
    pipe, device = _load(checkpoint, arguments)
    steps = arguments.num_inference_steps
    print(f"Starting inference on {device} ({steps} steps)...")
    laps = Laps(lambda: synchronize(device))
    drawing = Drawing(
        pipe,
        [arguments.prompt],
        arguments.negative_prompt,
        references[1:],
        arguments.num_images,
        _noise(arguments, pipe, device),
        steps,
        arguments.guidance_scale,
        on_stage=laps.add,
        guidance_every=arguments.guidance_every,
    )
    images, kept = zip(*request.draw(drawing), strict=True)
    if plan is not None:
        laps.add("put back")
    parameters |= {"device": str(device), "dtype": dtype_name(pipe.dtype), "vae_tiling": arguments.vae_tiling}
    each = [parameters | ({"kept": one.as_dict()} if one else {}) for one in kept]
    reports = [f"{path.name}: {one}\n" for path, one in zip(outputs, kept, strict=True) if one]
    return _save_all(images, outputs, each, "".join(reports) + laps.report(steps))


def _check_options(arguments: argparse.Namespace) -> list[str]:
    """Refuse options that do not go together; the names of the input images."""
    names = arguments.input_image or []
    for option in ("follow_input", "mask", "keep_unchanged"):
        if getattr(arguments, option) and not names:
            raise UsageError(f"--{option} needs an --input_image: add one.")
    if len(names) > checks.MAX_REFERENCES:
        found = checks.Named(f"{len(names)} files")
        raise UsageError(checks.must_be("--input_image", f"at most {checks.MAX_REFERENCES} files", found))
    if arguments.follow_input == STRETCH and (arguments.mask or arguments.keep_unchanged):
        raise UsageError("--follow_input stretch cannot be combined with --mask or --keep_unchanged: leave it out.")
    return names


def _noise(arguments: argparse.Namespace, pipe: DeepGenPipeline, device: torch.device) -> Callable[[int, int], Tensor]:
    """The noise of all images for a height and a width: the same for every region of a mask."""
    import torch

    def noise(height: int, width: int) -> Tensor:
        drawn: dict[str, Any] = {"seed": arguments.seed}
        if arguments.noise == "device" and device.type != "cpu":
            drawn = {"generator": torch.Generator(device).manual_seed(arguments.seed)}
        return pipe.prepare_latents(arguments.num_images, height, width, **drawn)

    return noise


def _save_all(images: Any, outputs: Sequence[Path], parameters: Sequence[dict[str, Any]], report: str) -> int:
    """Save each image, whether or not the others can be saved, and report where they are; the exit status."""
    saved, troubles = [], []
    try:
        for index, (image, path) in enumerate(zip(images, outputs, strict=True)):
            try:
                place, trouble = image_files.save_somewhere(image, path, {**parameters[index], "index": index})
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
    print(report)
    for place, image in saved:
        size = format_size(image.width, image.height)
        print(f"Image saved at: {place} ({size}, {format_bytes(place.stat().st_size)})")
    return 2 if troubles else 0


def _load(checkpoint: Checkpoint, arguments: argparse.Namespace) -> tuple[DeepGenPipeline, torch.device]:
    """The pipeline as the options want it, and the device that it draws on."""
    from ..components import device_map
    from ..devices import resolve_device

    device = resolve_device(arguments.device)
    devices = device_map(device, arguments.text_encoder_device)
    print(f"Target device: {device}")
    pipe = _read(checkpoint, arguments, devices)
    for one in arguments.lora:
        pipe.load_lora_weights(one.path, weight=one.strength)
        print(f"  LoRA: {one}")
    pipe.capture_graph = arguments.capture_graph
    if arguments.vae_tiling:
        pipe.enable_vae_tiling()
    return pipe, device


def _read(checkpoint: Checkpoint, arguments: argparse.Namespace, devices: dict[str, Any]) -> DeepGenPipeline:
    import torch
    from tqdm.auto import tqdm

    from ..components import require_formats
    from ..devices import best_dtype, resolve_dtype
    from ..pipeline import DeepGenPipeline

    require_formats(checkpoint, devices)
    print(f"Loading pipeline from: {checkpoint.folder}")
    start = time.perf_counter()
    choice, offload = arguments.dtype, arguments.offload
    dtype = resolve_dtype(choice, devices["transformer"])
    where = dict.fromkeys(devices, torch.device("cpu")) if offload else devices
    with tqdm(total=checkpoint.nbytes(), desc="Loading weights", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        pipe = DeepGenPipeline.from_checkpoint(
            checkpoint, dtype, where, on_bytes_read=bar.update, disable_mmap=arguments.disable_mmap
        )
    if offload:
        pipe.enable_model_cpu_offload(devices["transformer"])
    why = f", since {best_dtype(devices['transformer']).why}" if choice == "auto" else ""
    print(f"All components loaded in {time.perf_counter() - start:.1f}s ({dtype_name(dtype)}{why})")
    for name, part in pipe.memory().items():
        place = f"cpu, on {devices[name]} while it runs" if offload else part.device
        print(f"  {name}: {place}, {format_bytes(part.nbytes)}")
    return pipe
