"""The model, device and options that `bench` and `verify` run with."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from ..checkpoint.folder import PARTS, Checkpoint, resolve_model
from ..checkpoint.prompt_check import check_prompts_for
from ..components import device_map
from ..devices import device_name, empty_cache, free_memory, resolve_device, resolve_dtype
from ..dtypes import dtype_name
from ..errors import UsageError
from ..locations import downloaded_model
from ..npu_setup import MEASURED
from ..pipeline import DeepGenPipeline
from . import doctor
from .baseline import fingerprint
from .random_model import RandomModel
from .runs import RunSettings


@dataclass(frozen=True)
class ModelSpec:
    """A model that was not loaded yet, from files or with random weights."""

    checkpoint: Checkpoint
    random: RandomModel | None = None

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> ModelSpec:
        """What ``--model_path`` and ``--random-weights`` name."""
        if arguments.random_weights is None:
            return cls(Checkpoint.open(resolve_model(arguments.model_path or downloaded_model())))
        if arguments.model_path is not None:
            raise UsageError("--model_path and --random-weights were both given; one model is wanted.")
        random = RandomModel.of_size(arguments.random_weights)
        return cls(random.checkpoint, random)

    @property
    def name(self) -> str:
        if self.random is not None:
            return f"random weights of the size {self.random.size}"
        return self.checkpoint.folder.name

    def fingerprint(self) -> str:
        return fingerprint(self.checkpoint, f"{self.random.size} {self.random.seed}" if self.random else "")

    def settings(self, arguments: argparse.Namespace) -> RunSettings:
        """The run that the options describe, checked."""
        references = arguments.references
        rules = self.checkpoint.sizes
        trained = rules.match_aspect(1, 1, editing=references > 0)
        given = (arguments.height, arguments.width)
        height, width = (usual if side is None else side for side, usual in zip(given, trained, strict=True))
        height, width = rules.check(height, width, editing=references > 0)
        check_prompts_for(self.checkpoint, arguments.prompt, "", editing=references > 0)
        steps, guidance = arguments.num_inference_steps, arguments.guidance_scale
        return RunSettings(arguments.prompt, height, width, arguments.seed, steps, guidance, references)

    def latent_shape(self, settings: RunSettings) -> tuple[int, int, int, int]:
        """[1, C, H/8, W/8] of a run, from the configs.

        Raises:
            ValueError: When the model cannot make a picture of that size.
        """
        rules = self.checkpoint.sizes
        height, width = rules.check(settings.height, settings.width, editing=settings.references > 0)
        channels = self.checkpoint.configs["transformer"]["in_channels"]
        return 1, channels, height // rules.vae_factor, width // rules.vae_factor

    def load(self, place: DeviceSpec) -> tuple[DeepGenPipeline, float | None]:
        """The pipeline, and the seconds that loading its files took; None where there are none."""
        devices = device_map(torch.device("cpu") if place.offload else place.device, place.text_encoder_device)
        if self.random is not None:
            for device in sorted(set(devices.values()), key=str):
                parts = [part for part in PARTS if devices[part] == device]
                _require_memory(device, self.random.nbytes(place.dtype, *parts), place.dtype)
        _import_libraries()
        start = time.perf_counter()
        what = "Loading weights" if self.random is None else "Drawing weights"
        total = self.checkpoint.nbytes() if self.random is None else self.random.nbytes(place.dtype)
        with tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr) as bar:
            if self.random is None:
                pipe = DeepGenPipeline.from_checkpoint(self.checkpoint, place.dtype, devices, on_bytes_read=bar.update)
            else:
                pipe = self.random.load(place.dtype, devices, on_bytes_read=bar.update)
        if place.offload:
            pipe.enable_model_cpu_offload(place.device)
        pipe.capture_graph = place.capture_graph
        return pipe, None if self.random is not None else time.perf_counter() - start


@dataclass(frozen=True)
class DeviceSpec:
    """Where and how a model runs."""

    device: torch.device
    dtype: torch.dtype
    offload: bool = False
    capture_graph: bool = False
    text_encoder_device: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> DeviceSpec:
        """The place that the options describe.

        Raises:
            DeviceError: When the device is not there.
        """
        device = resolve_device(arguments.device)
        if arguments.text_encoder_device:
            resolve_device(arguments.text_encoder_device)  # found wrong before anything slow
        return cls(
            device,
            resolve_dtype(arguments.dtype, device),
            arguments.offload,
            arguments.capture_graph,
            arguments.text_encoder_device,
        )

    def __str__(self) -> str:
        words = [f"{self.device} ({name_of(self.device)})", dtype_name(self.dtype)]
        words += [f"VLM and connector on {self.text_encoder_device}"] if self.text_encoder_device else []
        words += ["offload"] if self.offload else []
        words += ["capture_graph"] if self.capture_graph else []
        return ", ".join(words)


def name_of(device: torch.device) -> str:
    """The name of a card or of the processor."""
    return doctor.processor() if device.type == "cpu" else device_name(device)


def release(device: torch.device) -> None:
    """Give the memory of a pipeline that is not used any more back."""
    gc.collect()
    empty_cache(device)


def header(**facts: object) -> str:
    """What a table in an issue begins with: versions, variables that matter, and these facts."""
    found = doctor.versions()
    lines = {"Versions": ", ".join(f"{name} {number}" for name, number in found.items()), **facts}
    variables = doctor.set_variables(MEASURED)
    if variables:
        lines["Environment"] = ", ".join(f"{name}={value}" for name, value in variables.items())
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in lines.items()) + "\n"


def _require_memory(device: torch.device, needed: int, dtype: torch.dtype) -> None:
    found = free_memory(device)
    if found is not None and needed > found[0]:
        raise UsageError(
            f"The weights need {needed / 2**30:.1f} GiB on {device} in {dtype_name(dtype)}, of which "
            f"{found[0] / 2**30:.1f} GiB are free. Choose --random-weights benchmark (a sixth of it), another "
            "--dtype or another device."
        )


def _import_libraries() -> None:
    """Import what loading imports, which takes seconds that are not the model's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel  # noqa: F401
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast  # noqa: F401
