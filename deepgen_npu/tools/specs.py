"""The model and the device that `bench` and `verify` run with."""

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
from ..components import device_map, require_formats
from ..devices import device_name, empty_cache, free_memory, resolve_device, resolve_dtype
from ..dtypes import dtype_name
from ..errors import UsageError
from ..formatting import command, format_bytes
from ..graphs import CaptureGraph
from ..locations import downloaded_model
from ..lora.file import LoraChoice, check_choices
from ..npu_setup import MEASURED
from ..pipeline import DeepGenPipeline
from . import doctor
from .fingerprint import fingerprint
from .random_model import RandomModel
from .runs import RunSettings


@dataclass(frozen=True)
class ModelSpec:
    """A model that is not loaded yet, from files or with random weights.

    Attributes:
        checkpoint: Its configs and the headers of its files.
        random: Set if its weights are random.
        loras: What is merged into it.
    """

    checkpoint: Checkpoint
    random: RandomModel | None = None
    loras: tuple[LoraChoice, ...] = ()

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> ModelSpec:
        """The model that ``--model_path`` or ``--random-weights`` names.

        Args:
            arguments: Of the command line.

        Raises:
            UsageError, CheckpointError: When there is no such model.
            LoraError: When it cannot have the LoRAs that ``--lora`` names.
        """
        random = None
        if arguments.random_weights is None:
            if arguments.format is not None:
                raise UsageError(
                    "--format is of --random-weights: a model folder has its own. "
                    f"To make one:{command('python -m deepgen_npu quantize SOURCE TARGET --format FORMAT')}".rstrip()
                )
            checkpoint = Checkpoint.open(resolve_model(arguments.model_path or downloaded_model()))
        elif arguments.model_path is not None:
            raise UsageError("--model_path and --random-weights cannot be combined: pass one of them.")
        else:
            random = RandomModel.of_size(arguments.random_weights, title=arguments.format)
            checkpoint = random.checkpoint
        check_choices(arguments.lora, checkpoint.configs["transformer"])
        return cls(checkpoint, random, tuple(arguments.lora))

    @property
    def name(self) -> str:
        """For people: the name of the folder, and the LoRAs."""
        model = self.checkpoint.folder.name
        if self.random is not None:
            title = f" in {self.random.title}" if self.random.title else ""
            model = f"random weights of the size {self.random.size}{title}"
        return " + ".join([model, *map(str, self.loras)])

    def fingerprint(self) -> str:
        """See `fingerprint.fingerprint`."""
        return fingerprint(self.checkpoint, self.random.recipe if self.random else "", self.loras)

    def settings(self, arguments: argparse.Namespace) -> RunSettings:
        """The run that the options describe.

        Args:
            arguments: Of the command line.

        Raises:
            ValueError: When this model cannot do it.
        """
        references = arguments.references
        rules = self.checkpoint.sizes
        trained = rules.match_aspect(1, 1, editing=references > 0)
        given = (arguments.height, arguments.width)
        height, width = (usual if side is None else side for side, usual in zip(given, trained, strict=True))
        height, width = rules.check(height, width, editing=references > 0)
        check_prompts_for(self.checkpoint, arguments.prompt, "", editing=references > 0)
        steps, guidance = arguments.num_inference_steps, arguments.guidance_scale
        return RunSettings(
            arguments.prompt, height, width, arguments.seed, steps, guidance, references, arguments.guidance_every
        )

    def latent_shape(self, settings: RunSettings) -> tuple[int, int, int, int]:
        """The shape [1, C, H/8, W/8] of the latents of a run, from the configs.

        Args:
            settings: Of the run.

        Raises:
            ValueError: When the model does not support that size.
        """
        rules = self.checkpoint.sizes
        height, width = rules.check(settings.height, settings.width, editing=settings.references > 0)
        channels = self.checkpoint.configs["transformer"]["in_channels"]
        return 1, channels, height // rules.vae_factor, width // rules.vae_factor

    def load(self, place: DeviceSpec) -> tuple[DeepGenPipeline, float | None]:
        """The pipeline, and the seconds that loading its files took; None for random weights.

        Args:
            place: Where and how it runs.

        Raises:
            UsageError: When random weights do not fit into the memory.
        """
        require_formats(self.checkpoint, device_map(place.device, place.text_encoder_device))
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
                pipe = DeepGenPipeline.from_checkpoint(
                    self.checkpoint, place.dtype, devices, on_bytes_read=bar.update, disable_mmap=place.disable_mmap
                )
            else:
                pipe = self.random.load(place.dtype, devices, on_bytes_read=bar.update)
        if place.offload:
            pipe.enable_model_cpu_offload(place.device)
        for one in self.loras:
            pipe.load_lora_weights(one.path, weight=one.strength)
        pipe.capture_graph = place.capture_graph
        return pipe, None if self.random is not None else time.perf_counter() - start


@dataclass(frozen=True)
class DeviceSpec:
    """Where and how a model runs.

    Attributes:
        device: Of the DiT and the VAE.
        dtype: Of the weights.
        offload: Whether parts wait on the CPU until they run.
        capture_graph: Whether the denoising step is captured in a graph, or ``auto``.
        text_encoder_device: Of VLM and connector, if another one.
        disable_mmap: Whether no weights are views of the model's files.
    """

    device: torch.device
    dtype: torch.dtype
    offload: bool = False
    capture_graph: CaptureGraph = False
    text_encoder_device: str | None = None
    disable_mmap: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> DeviceSpec:
        """The place that the options describe.

        Args:
            arguments: Of the command line.

        Raises:
            DeviceError: When a device does not exist.
        """
        device = resolve_device(arguments.device)
        if arguments.text_encoder_device:
            resolve_device(arguments.text_encoder_device)  # fails before anything slow
        return cls(
            device,
            resolve_dtype(arguments.dtype, device),
            arguments.offload,
            arguments.capture_graph,
            arguments.text_encoder_device,
            arguments.disable_mmap,
        )

    def __str__(self) -> str:
        words = [f"{self.device} ({name_of(self.device)})", dtype_name(self.dtype)]
        words += [f"VLM and connector on {self.text_encoder_device}"] if self.text_encoder_device else []
        words += ["offload"] if self.offload else []
        words += ["capture_graph auto" if self.capture_graph == "auto" else "capture_graph"] * bool(self.capture_graph)
        words += ["disable_mmap"] if self.disable_mmap else []
        return ", ".join(words)


def name_of(device: torch.device) -> str:
    """The name of a card or of the processor."""
    return doctor.processor() if device.type == "cpu" else device_name(device)


def release(device: torch.device) -> None:
    """Release the memory of a pipeline that nothing refers to any more."""
    gc.collect()
    empty_cache(device)


def header(**facts: object) -> str:
    """The lines above a table for an issue: versions, relevant environment variables, and the given facts."""
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
            f"The weights need {format_bytes(needed)} on {device} in {dtype_name(dtype)}, but only "
            f"{format_bytes(found[0])} are free. Choose --random-weights benchmark (a sixth of it), another --dtype "
            "or another device."
        )


def _import_libraries() -> None:
    """Import what loading imports, so that its seconds are not counted as loading."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel  # noqa: F401
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast  # noqa: F401
